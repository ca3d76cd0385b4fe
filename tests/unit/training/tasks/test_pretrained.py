"""How a network looks before its weights are read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from training.config import JobConfig
from training.tasks.pretrained import build_network, without_weights

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


def test_weights_published_in_half_precision_are_float32_read_or_not(tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model("llama", **SIZES)).bfloat16().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    config = JobConfig().with_values({"model.pretrained": str(tmp_path)})
    with without_weights():
        unread = build_network(AutoModel, config)
    for network in (unread, build_network(AutoModel, config)):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
