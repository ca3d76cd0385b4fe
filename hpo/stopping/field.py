"""What a running trial races against: the scores of the trials told before it. Larger is better, always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runner:
    """What one trial has scored."""

    number: int
    """Of the trial, as it was told last."""
    root: int
    """The same, or of the first one, where trials went on with each other."""
    curves: Floats
    """(folds, epochs): the value after each epoch of each fold, NaN where there is none."""
    finals: Floats
    """(folds,): the score of each fold that ran to its end, else NaN."""
    num_epochs: int
    """Of each of its folds."""
    is_paused: bool = False
    """Whether racing stopped it, and may take it up again."""
    is_feasible: bool = True
    """Whether it violates no constraint, as far as is known."""

    def has(self, fold: int, epoch: int) -> bool:
        """Whether it has reported the value after `epoch` epochs of `fold`."""
        return not bool(np.isnan(self.curves[fold, epoch - 1]))

    @property
    def mean(self) -> float:
        """Over the folds that ran to their end; NaN before the first has."""
        ended = self.finals[~np.isnan(self.finals)]
        return float(ended.mean()) if len(ended) else float("nan")

    @property
    def is_complete(self) -> bool:
        """Whether every fold ran to its end."""
        return not np.isnan(self.finals).any()


class Field:
    """The told trials of a study, completed or stopped."""

    def __init__(self, *, num_folds: int, max_epochs: int) -> None:
        self.curves: Floats = np.empty((0, num_folds, max_epochs))
        """(trials, folds, epochs)"""
        self.finals: Floats = np.empty((0, num_folds))
        """(trials, folds)"""
        self.roots: list[int] = []
        self.num_added = 0
        self._told: dict[int, Runner] = {}
        self.incumbent: Runner | None = None
        """The best trial that ran all its folds and violates no constraint."""

    def __len__(self) -> int:
        return len(self.roots)

    def add(self, runners: Sequence[Runner]) -> None:
        """More trials were told. One that is there already has gone on since, and takes its place."""
        if not runners:
            return
        new = {runner.root: runner for runner in runners}
        kept = [row for row, root in enumerate(self.roots) if root not in new]
        self.curves = np.concatenate([self.curves[kept], [runner.curves for runner in new.values()]])
        self.finals = np.concatenate([self.finals[kept], [runner.finals for runner in new.values()]])
        self.roots = [*(self.roots[row] for row in kept), *new]
        self.num_added += len(runners)
        self._told |= new
        for runner in runners:
            if (
                runner.is_complete
                and runner.is_feasible
                and (self.incumbent is None or runner.mean > self.incumbent.mean)
            ):
                self.incumbent = runner

    def __contains__(self, root: int) -> bool:
        return root in self._told

    def number(self, root: int) -> int:
        """Of the trial as it was told last."""
        return self._told[root].number

    def paused(self) -> list[Runner]:
        """The trials that may be taken up again."""
        return [runner for runner in self._told.values() if runner.is_paused and runner.is_feasible]
