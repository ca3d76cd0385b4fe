"""Classification, whatever the input: cross-entropy, and metrics from one confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.data import Batch
from training.distributed import Statistics
from training.tasks.task import TrainingModule


class Classifier(TrainingModule):
    """A network that returns ``.logits`` of shape (batch, classes), trained on ``labels`` of shape (batch,)."""

    row_names = ("labels", "predicted", "probabilities", "loss")

    def __init__(self, network: nn.Module, *, num_classes: int, save: Callable[[nn.Module, Path], None]) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self._integer = torch.int16 if num_classes <= 2**15 else torch.int32
        self._save = save

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(self._logits(batch), batch["labels"])

    def evaluate(self, batch: Batch) -> Statistics:
        """``confusion``: (classes, classes) counts, true class by row; ``loss_sum``: summed cross-entropy; the rows."""
        logits, labels = self._logits(batch), batch["labels"]
        predicted = logits.argmax(dim=-1)
        cells = labels * self.num_classes + predicted
        confusion = torch.bincount(cells, minlength=self.num_classes**2).reshape(self.num_classes, -1)
        return {
            "confusion": confusion,
            "loss_sum": cross_entropy(logits, labels, reduction="sum"),
            "labels": labels.to(self._integer),
            "predicted": predicted.to(self._integer),  # in 16 bits the two highest probabilities may be one
            "probabilities": logits.float().softmax(dim=-1).half(),
            "loss": cross_entropy(logits, labels, reduction="none"),
        }

    def summarize(self, totals: Statistics) -> dict[str, float]:
        """accuracy, balanced_accuracy, f1_macro (as scikit-learn defines them) and mean loss."""
        confusion = totals["confusion"]
        hits, actual, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        return {
            "accuracy": (hits.sum() / confusion.sum()).item(),
            "balanced_accuracy": (hits / actual)[actual > 0].mean().item(),
            "f1_macro": (2 * hits / (actual + predicted))[actual + predicted > 0].mean().item(),
            "loss": (totals["loss_sum"] / confusion.sum()).item(),
        }

    def save(self, folder: Path) -> None:
        """Write the network, ready to be loaded without this project where that is possible."""
        folder.mkdir(parents=True, exist_ok=True)
        self._save(self.network, folder)

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = self.network(**inputs).logits
        return logits
