"""A saved text encoder gives the vectors that it was trained to give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from training.config import JobConfig
from training.tasks.embedding import Embedding
from training.tasks.encoders import load_text_encoder

BERT = {"architecture": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"architecture": "t5", "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
TEXTS = ["add an item", "the end", "open that file and read it"]


@pytest.mark.parametrize(
    ("encoders", "pooling", "model", "tower"),
    [
        ("shared", "mean", BERT, ""),
        ("shared", "cls", BERT, ""),
        ("two", "last", BERT, "first"),
        ("shared", "mean", T5, ""),
    ],
    ids=["mean", "cls", "two encoders", "T5"],
)
def test_a_saved_encoder_gives_its_vectors(
    encoders: str, pooling: str, model: dict[str, object], tower: str, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,pair\n" + "".join(f"{text},{text} again\n" for text in TEXTS))
    values = {
        "data": {"name": str(pairs), "pair_column": "pair"},
        "model": {"vocab_size": 100, **model},
        "embedding": {"encoders": encoders, "pooling": pooling},
        "output.root": str(tmp_path),
    }
    config, task = JobConfig(task="embedding").with_values(values), Embedding()
    data = task.prepare(config)
    trained = task.build_model(config, data).eval()
    trained.save(tmp_path / "model")
    batch = {name: torch.from_numpy(data.arrays[name].copy()) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = normalize(trained(batch).first, dim=-1)
    torch.testing.assert_close(load_text_encoder(tmp_path / "model", tower)(TEXTS), expected)
