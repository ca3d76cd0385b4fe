"""The step axis means the same in every trial: (fold, epoch) as Optuna's one integer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StepAxis:
    """(fold, epoch) as Optuna's one integer step: fold x `max_epochs` + epoch, epochs counted from 1."""

    max_epochs: int
    """Of the study's longest trial."""
    num_folds: int
    base_epochs: int | None = None
    """Of a trial that does not sample its own; None is `max_epochs`."""

    def step(self, fold: int, epoch: int) -> int:
        """The step of the value after `epoch` finished epochs of `fold`."""
        return fold * self.max_epochs + epoch

    @property
    def verdict(self) -> int:
        """The step after all others: what a stopped trial is estimated to have come to."""
        return self.num_folds * self.max_epochs + 1

    def fold(self, step: int) -> int:
        """The fold that `step` is of; for the verdict, the number of folds."""
        return (step - 1) // self.max_epochs

    def curves(self, values: Mapping[int, float]) -> np.ndarray:
        """(folds, epochs): values by step, without the verdict, NaN where there is none."""
        flat = np.full(self.num_folds * self.max_epochs, np.nan)
        for step, value in values.items():
            if step < self.verdict:
                flat[step - 1] = value
        return flat.reshape(self.num_folds, self.max_epochs)
