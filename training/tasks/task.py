"""What a task is: it prepares samples and builds a module that knows its loss and its metrics.

A task of your own implements the three methods of Task; docs/own-task.md shows one, line by line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from training.config import JobConfig
from training.data import Batch, PreparedData
from training.distributed import Statistics


class TrainingModule(nn.Module):
    """A model with its loss and its metrics. The trainer calls nothing else."""

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over `batch`, a scalar to differentiate."""
        raise NotImplementedError

    def evaluate(self, batch: Batch) -> Statistics:
        """Sums over `batch`, from which metrics follow: they are added over batches and ranks."""
        raise NotImplementedError

    def summarize(self, totals: Statistics) -> dict[str, float]:
        """Metrics from the added sums (float64, on the CPU). ``loss`` should be among them."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the trained model to `folder`. Rank 0."""
        raise NotImplementedError


class Task(Protocol):
    """One kind of learning problem. Created without arguments in every rank."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """The samples, best through ``training.data.prepare_once``. All ranks. Raises DataError."""

    def collate(self, batch: Batch) -> Batch:
        """Last change to a batch before the model sees it, such as cutting padding; in the loader's process."""

    def build_model(self, config: JobConfig, data: PreparedData) -> TrainingModule:
        """The module to train, on the CPU. Randomness is seeded before the call. All ranks."""
