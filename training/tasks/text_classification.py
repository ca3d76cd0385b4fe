"""Text classification: any transformers sequence classifier on any table with a text and a label column."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification

from training.config import JobConfig
from training.data import Batch, PreparedData, prepare_once
from training.errors import ConfigError, Problem
from training.sources import load_table
from training.tasks.classifier import Classifier
from training.tasks.labels import encode_classes, encode_groups, sample
from training.tasks.pretrained import build_network, class_names, save_network
from training.tasks.tokens import build_tokenizer, cut_padding, save_tokenizer, text_recipe, token_info, tokenize


class TextClassification:
    """Arrays: ``input_ids`` and ``attention_mask`` (samples, tokens) int64, ``labels`` (samples,) int64."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """Tokenise once per dataset and tokenizer."""
        return prepare_once(config, text_recipe(config), partial(self._build, config))

    def _build(self, config: JobConfig, folder: Path) -> PreparedData:
        table = sample(load_table(config.data), config)
        texts = [str(text) for text in table.column(config.data.text_column, key="data.text_column")]
        tokenizer = build_tokenizer(config, texts, folder)
        classes, labels = encode_classes(table, config.data)
        return PreparedData(
            arrays={**tokenize(tokenizer, texts, max_length=config.data.max_length), "labels": labels},
            groups=encode_groups(table, config),
            info={"classes": classes, **token_info(tokenizer)},
        )

    def collate(self, batch: Batch) -> Batch:
        """Cut the padding that no text of this batch needs."""
        return cut_padding(batch)

    def build_model(self, config: JobConfig, data: PreparedData) -> Classifier:
        """The architecture (or pretrained weights) with a head for the classes of the data."""
        classes: list[str] = data.info["classes"]
        required = {**class_names(classes), "pad_token_id": data.info["pad_token_id"]}
        if config.model.pretrained is None:
            required["vocab_size"] = data.info["vocab_size"]
        network: Any = build_network(AutoModelForSequenceClassification, config, **required)
        if network.config.is_encoder_decoder and getattr(network.config, "decoder_start_token_id", None) is None:
            message = f"{network.config.model_type} has a decoder that a classifier cannot start; take an encoder"
            raise ConfigError([Problem(place="model.architecture", message=message)])
        assert data.folder is not None
        prepared = data.folder

        def save(trained: nn.Module, folder: Path) -> None:
            save_network(trained, folder, config.lora)
            save_tokenizer(prepared, folder)

        return Classifier(network, num_classes=len(classes), save=save)
