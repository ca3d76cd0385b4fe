"""Text classification: any transformers sequence classifier on any table with a text and a label column."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from training.config import JobConfig
from training.data import Batch, PreparedData, prepare_once
from training.sources import fingerprint, load_table
from training.tasks.classifier import Classifier
from training.tasks.labels import encode_classes, encode_groups, sample
from training.tasks.pretrained import build_network, class_names, identify, locate
from training.tasks.wordpiece import train_wordpiece


class TextClassification:
    """Arrays: ``input_ids`` and ``attention_mask`` (samples, tokens) int64, ``labels`` (samples,) int64."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """Tokenise once per dataset and tokenizer."""
        model = config.model
        reference = model.tokenizer or model.pretrained
        tokenizer = identify(reference) if reference else f"wordpiece-{model.vocab_size} {version('tokenizers')}"
        recipe = {
            "task": "text_classification",
            "source": fingerprint(config.data),
            "data": config.data.model_dump(exclude={"num_workers"}),
            "grouped": config.cross_validation.grouped,
            "seed": config.cross_validation.seed,
            "tokenizer": tokenizer,
        }
        return prepare_once(config, recipe, lambda folder: self._build(config, folder))

    def _build(self, config: JobConfig, folder: Path) -> PreparedData:
        table = sample(load_table(config.data), config)
        texts = [str(text) for text in table.column(config.data.text_column, key="data.text_column")]
        tokenizer = _tokenizer(config, texts)
        tokenizer.model_max_length = config.data.max_length  # as the model will have seen it
        tokenizer.save_pretrained(folder / "tokenizer")
        encoded = tokenizer(
            texts, truncation=True, max_length=config.data.max_length, padding=True, return_tensors="np"
        )
        classes, labels = encode_classes(table, config.data)
        arrays = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}
        groups = encode_groups(table, config)
        return PreparedData(
            arrays={name: array.astype(np.int64) for name, array in arrays.items()},
            groups=groups,
            info={"classes": classes, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        )

    def collate(self, batch: Batch) -> Batch:
        """Cut the padding that no text of this batch needs."""
        used = torch.nonzero(batch["attention_mask"].any(dim=0)).flatten()
        longest = int(used[-1]) + 1
        return {name: value[:, :longest].contiguous() if value.ndim == 2 else value for name, value in batch.items()}

    def build_model(self, config: JobConfig, data: PreparedData) -> Classifier:
        """The architecture (or pretrained weights) with a head for the classes of the data."""
        classes: list[str] = data.info["classes"]
        required = {**class_names(classes), "pad_token_id": data.info["pad_token_id"]}
        if config.model.pretrained is None:
            required["vocab_size"] = data.info["vocab_size"]
        network = build_network(AutoModelForSequenceClassification, config.model, **required)

        assert data.folder is not None
        tokenizer = data.folder / "tokenizer"

        def save(trained: nn.Module, folder: Path) -> None:
            trained.save_pretrained(folder)  # type: ignore[operator]
            AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)

        return Classifier(network, num_classes=len(classes), save=save)


def _tokenizer(config: JobConfig, texts: list[str]) -> PreTrainedTokenizerBase:
    reference = config.model.tokenizer or config.model.pretrained
    if reference is None:
        return train_wordpiece(texts, vocab_size=config.model.vocab_size)
    key = "tokenizer" if config.model.tokenizer else "pretrained"
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(reference, key=key))
    if tokenizer.pad_token is None:  # decoders are trained without padding
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
