"""Embedding: texts (or texts and images) that belong together get vectors that point the same way.

Trained with InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) against all other samples of the global batch, both
ways round; optionally for several prefixes of the vectors at once (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147).
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from training.config import JobConfig
from training.data import Batch, PreparedData, prepare_once
from training.errors import ConfigError, Problem
from training.sources import Table, load_table
from training.tasks.encoders import ImageTextEncoder, TextPairEncoder
from training.tasks.image_input import fit_to, input_format, read_pixels
from training.tasks.info_nce import PairModel
from training.tasks.labels import encode_groups, sample
from training.tasks.pretrained import build_network, reading
from training.tasks.tokens import build_tokenizer, cut_padding, text_recipe, token_info, tokenize


class Embedding:
    """Arrays: ``input_ids`` and ``attention_mask`` (samples, texts, tokens) int64, with two texts a sample; or one, and
    ``pixel_values`` (samples, channels, height, width) float32, for an architecture of text and image such as CLIP.
    """

    def prepare(self, config: JobConfig) -> PreparedData:
        """Tokenise (and convert the images) once per dataset, tokenizer and input format."""
        recipe = text_recipe(config) | {"images": _sees(config)}
        if _sees(config) and config.model.pretrained:
            recipe["input"] = input_format(config.model.pretrained)
        return prepare_once(config, recipe, partial(self._build, config))

    def _build(self, config: JobConfig, folder: Path) -> PreparedData:
        table = sample(load_table(config.data), config)
        keys = ["text_column"] if _sees(config) else ["text_column", "pair_column"]
        columns = [_texts(table, config, key) for key in keys]
        tokenizer = build_tokenizer(config, [text for column in columns for text in column], folder)
        # All at once, so that both texts are padded to one length.
        flat = [text for texts in zip(*columns, strict=True) for text in texts]
        tokens = tokenize(tokenizer, flat, max_length=config.data.max_length)
        arrays = {name: array.reshape(table.num_rows, len(keys), -1) for name, array in tokens.items()}
        if _sees(config):
            arrays["pixel_values"] = _images(table, config)
        return PreparedData(arrays=arrays, groups=encode_groups(table, config), info=token_info(tokenizer))

    def collate(self, batch: Batch) -> Batch:
        """Cut the padding that no text of this batch needs."""
        return cut_padding(batch)

    def build_model(self, config: JobConfig, data: PreparedData) -> PairModel:
        """One encoder, two, or a model of text and image, and the contrastive loss on what they make."""
        assert data.folder is not None
        if _sees(config):
            network: Any = build_network(AutoModel, config, **_clip_settings(config, data))
            _check_dimensions(config, network.config.projection_dim)
            return PairModel(ImageTextEncoder(network), config, prepared=data.folder)
        required = {} if config.model.pretrained else {k: v for k, v in data.info.items() if k != "bos_token_id"}
        networks: list[Any] = [
            build_network(AutoModel, config, encoder=True, **required) for _ in range(_num_networks(config))
        ]
        _check_dimensions(config, networks[0].config.hidden_size)
        return PairModel(TextPairEncoder(networks, config.embedding.pooling), config, prepared=data.folder)


def _check_dimensions(config: JobConfig, width: int) -> None:
    too_wide = [d for d in config.embedding.mrl_dims or () if d > width]
    if too_wide:
        message = f"{too_wide} are more dimensions than the {width} of the model's vectors; leave them out"
        raise ConfigError([Problem(place="embedding.mrl_dims", message=message)])


def _num_networks(config: JobConfig) -> int:
    return 2 if config.embedding.encoders == "two" else 1


def _sees(config: JobConfig) -> bool:
    """Whether the architecture takes images beside texts."""
    settings = _settings(config)
    return settings is not None and hasattr(settings, "vision_config") and hasattr(settings, "text_config")


def _settings(config: JobConfig) -> PreTrainedConfig | None:
    if config.model.pretrained is not None:
        with reading(config.model.pretrained) as place:
            settings: PreTrainedConfig | None = AutoConfig.from_pretrained(place)
    else:
        with contextlib.suppress(ValueError):  # told when the model is built
            return AutoConfig.for_model(config.model.architecture)
        settings = None
    return settings


def _texts(table: Table, config: JobConfig, key: str) -> list[str]:
    return [str(text) for text in table.column(getattr(config.data, key), key=f"data.{key}")]


def _images(table: Table, config: JobConfig) -> np.ndarray:
    pixels = read_pixels(table, config)
    return fit_to(input_format(config.model.pretrained), pixels) if config.model.pretrained else pixels


def _clip_settings(config: JobConfig, data: PreparedData) -> dict[str, Any]:
    """The data's part in the configuration of a CLIP that is built from scratch: tokens, and the shape of images."""
    if config.model.pretrained is not None:
        return {}
    extra = config.model.model_extra or {}
    channels, height, _ = data.arrays["pixel_values"].shape[1:]
    return {
        "text_config": {**extra.get("text_config", {}), **data.info},
        "vision_config": {**extra.get("vision_config", {}), "num_channels": channels, "image_size": height},
    }
