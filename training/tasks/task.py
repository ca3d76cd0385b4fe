"""What a task is: it prepares samples and builds a module that knows its loss and its metrics.

A task of your own implements the three methods of Task; docs/own-task.md shows one, line by line.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from training.config import JobConfig
from training.data import Batch, PreparedData
from training.distributed import RunContext, Statistics


class TrainingModule(nn.Module):
    """A model with its loss and its metrics. The trainer calls nothing else."""

    row_names: ClassVar[tuple[str, ...]] = ()
    """The values of `evaluate` that are no sums: they have a row a sample, put one after the other over batches and
    ranks, and are kept with the result (training/predictions.py)."""
    summarizes_rows: ClassVar[bool] = False
    """Whether `summarize` gets these rows too."""

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over `batch`, a scalar to differentiate."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> Tensor | None:
        """What that mean is over, a scalar, such as the number of tokens; None when it is the number of samples."""
        return None

    def evaluate(self, batch: Batch) -> Statistics:
        """Sums over `batch`, from which metrics follow: they are added over batches and ranks. And rows."""
        raise NotImplementedError

    def summarize(self, totals: Statistics) -> dict[str, float]:
        """Metrics from the added sums (float64, on the CPU). ``loss`` should be among them."""
        raise NotImplementedError

    def predictions(self, rows: Statistics) -> Statistics:
        """What to keep of each sample, by name: the rows as they are, or what follows from all of them. Rank 0."""
        return rows

    def save(self, folder: Path) -> None:
        """Write the trained model to `folder`. Rank 0."""
        raise NotImplementedError


class Representations(NamedTuple):
    """What an encoder makes of pairs."""

    first: Tensor
    """(samples, dimensions)"""
    second: Tensor
    """(samples, dimensions): row i belongs to row i of `first`."""
    sharpness: Tensor
    """(1,): the inverse temperature, the same for every batch; a constant or trained."""


class ContrastiveModule(TrainingModule):
    """A model whose loss compares each sample with all the others of the global batch, on whatever rank they are.

    `forward` returns Representations instead of a loss.
    """

    cache_gradients: bool = True
    """Contrast all micro-batches of a step together (gradient cache), not each by itself."""

    def contrast(self, mine: Representations, context: RunContext) -> Tensor:
        """The mean loss of this rank's pairs against those of all ranks (``context.gather``), a scalar.

        No parameters are used here, so that the gradient can be cached. All ranks.
        """
        raise NotImplementedError


class Task(Protocol):
    """One kind of learning problem. Created without arguments in every rank."""

    def prepare(self, config: JobConfig) -> PreparedData:
        """The samples, best through ``training.data.prepare_once``. All ranks. Raises DataError."""

    def collate(self, batch: Batch) -> Batch:
        """Last change to a batch before the model sees it, such as cutting padding; in the loader's process."""

    def build_model(self, config: JobConfig, data: PreparedData) -> TrainingModule:
        """The module to train, on the CPU. Randomness is seeded before the call. All ranks."""
