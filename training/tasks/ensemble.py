"""A trained ensemble of classifiers, loaded: the mean of its members' probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from training.run_dir import ENSEMBLE
from training.tasks.image_input import FILE, fit_to
from training.tasks.image_networks import is_small, load_small_network

Classify = Callable[[Any], Tensor]


def load_ensemble(folder: Path | str) -> Classify:
    """Of an ensemble that ``hpo train-best`` left in `folder`: inputs to probabilities (samples, classes), on the CPU.

    Inputs are texts, or images as an array (samples, channels, height, width) float32 in 0..1. Each member makes of
    them what its training did. Classes are numbered as in the members' ``config.json``.
    """
    listed = json.loads((Path(folder) / ENSEMBLE).read_text(encoding="utf-8"))
    load = {"text_classification": _texts, "image_classification": _images}[listed["task"]]
    members = [load(Path(folder) / member["model"]) for member in listed["members"]]

    @torch.no_grad()
    def classify(inputs: Any) -> Tensor:
        return torch.stack([member(inputs).float().softmax(dim=-1) for member in members]).mean(dim=0)

    return classify


def _texts(folder: Path) -> Classify:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def logits(texts: Any) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        found: Tensor = network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
        return found

    return logits


def _images(folder: Path) -> Classify:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    load = load_small_network if is_small(settings.get("architecture")) else _load_pretrained
    network: Any = load(folder)
    format_file = folder / FILE
    values = json.loads(format_file.read_text(encoding="utf-8")) if format_file.exists() else None

    def logits(images: Any) -> Tensor:
        pixels = np.asarray(images, dtype=np.float32)
        found: Tensor = network(torch.from_numpy(fit_to(values, pixels) if values else pixels)).logits
        return found

    return logits


def _load_pretrained(folder: Path) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder).eval()
