"""Encoders of pairs: from a batch to two vectors a sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer

from training.config.schema import LoraConfig
from training.data import Batch
from training.tasks.pretrained import save_network

Pooling = Literal["mean", "cls", "last"]
SETTINGS = "embedding.json"
"""Beside the saved model: what made vectors of it."""


class TextPairEncoder(nn.Module):
    """Two texts a sample, through one network or through one each."""

    def __init__(self, networks: Sequence[Any], pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        # Not a ModuleList, which would read as layers of one model.
        self.network = networks[0]
        self.other = networks[1] if len(networks) > 1 else None

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(samples, dimensions) of the first texts and of the second."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.other is not None:
            return self._encode(self.network, ids[:, 0], mask[:, 0]), self._encode(self.other, ids[:, 1], mask[:, 1])
        # Both in one pass: it is faster, and FSDP gathers the weights once.
        vectors = self._encode(self.network, ids.flatten(0, 1), mask.flatten(0, 1))
        return vectors[0::2], vectors[1::2]

    def _encode(self, network: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(hidden, mask, self.pooling)

    def save(self, folder: Path, lora: LoraConfig | None) -> None:
        """One network in `folder` itself, two in its folders ``first`` and ``second``."""
        if self.other is None:
            save_network(self.network, folder, lora)
            return
        for name, network in (("first", self.network), ("second", self.other)):
            save_network(network, folder / name, lora)


class ImageTextEncoder(nn.Module):
    """A text and an image a sample, through a model with a tower for each and projections into one space (CLIP)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # The temperature is trained with the loss, not here.
        self.network.logit_scale.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(samples, dimensions) of the texts and of the images."""
        ids, mask = batch["input_ids"][:, 0], batch["attention_mask"][:, 0]
        texts = self.network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return texts, self.network.get_image_features(pixel_values=batch["pixel_values"]).pooler_output

    def save(self, folder: Path, lora: LoraConfig | None) -> None:
        """The network, for transformers to load."""
        save_network(self.network, folder, lora)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """(texts, dimensions) from hidden states (texts, tokens, dimensions) and mask (texts, tokens), 1 for real ones."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).argmax(dim=1)  # also where padding is on the left
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def load_text_encoder(folder: Path | str, tower: str = "") -> Callable[[Sequence[str]], Tensor]:
    """Of a text encoder saved in `folder`: texts to vectors (texts, dimensions) of length 1, on the CPU.

    `tower` is ``first`` or ``second`` where there are two.
    """
    pooling = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))["pooling"]
    tokenizer, settings = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(Path(folder) / tower)
    module = sys.modules[MODEL_MAPPING[type(settings)].__module__]
    kind = getattr(module, settings.architectures[0])  # not of AutoModel: T5's encoder was saved without its decoder
    encoder = kind.from_pretrained(Path(folder) / tower).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return normalize(pool(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask, pooling), dim=-1)

    return encode
