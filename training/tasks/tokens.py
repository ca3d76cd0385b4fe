"""From texts to arrays of tokens: the tokenizer of a job, loaded or trained on its texts, and what it makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.config import JobConfig
from training.data import Batch
from training.sources import fingerprint
from training.tasks.pretrained import identify, reading
from training.tasks.wordpiece import train_wordpiece
from training.versions import version_of

FOLDER = "tokenizer"
"""Beside the prepared arrays: the tokenizer that made them."""


def text_recipe(config: JobConfig) -> dict[str, Any]:
    """What the tokens of a job depend on."""
    model = config.model
    reference = model.tokenizer or model.pretrained
    return {
        "task": config.task,
        "source": fingerprint(config.data),
        "data": config.data.model_dump(exclude={"num_workers"}),
        "grouped": config.cross_validation.grouped,
        "seed": config.cross_validation.seed,
        "tokenizer": identify(reference) if reference else f"wordpiece-{model.vocab_size} {version_of('tokenizers')}",
    }


def build_tokenizer(config: JobConfig, texts: list[str], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the model block names, or one trained on `texts`; kept in `folder`."""
    reference = config.model.tokenizer or config.model.pretrained
    if reference is None:
        tokenizer: PreTrainedTokenizerBase = train_wordpiece(texts, vocab_size=config.model.vocab_size)
    else:
        key = "tokenizer" if config.model.tokenizer else "pretrained"
        with reading(reference, key=key) as place:
            tokenizer = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:  # decoders are trained without padding
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = config.data.max_length  # as the model will have seen it
    tokenizer.save_pretrained(folder / FOLDER)
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask``, (texts, tokens) int64, padded to the longest."""
    encoded = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def token_info(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a model's configuration says of its tokens."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": len(tokenizer), **{name: number for name, number in ids.items() if number is not None}}


def cut_padding(batch: Batch) -> Batch:
    """Without the tokens that no text of `batch` needs; they are the last axis of the arrays that have them."""
    mask = batch["attention_mask"]
    used = torch.nonzero(mask.flatten(0, -2).any(dim=0))
    longest = int(used[-1]) + 1 if len(used) else 1
    tokens = {name: batch[name][..., :longest].contiguous() for name in ("input_ids", "attention_mask")}
    return {**batch, **tokens}


def save_tokenizer(prepared: Path, folder: Path) -> None:
    """Put the tokenizer that is kept in `prepared` beside a saved model."""
    AutoTokenizer.from_pretrained(prepared / FOLDER).save_pretrained(folder)
