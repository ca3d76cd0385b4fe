"""What a running trial races against: the scores of the trials told before it. Larger is better, always."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def epochs_of(share: float, num_epochs: Any) -> NDArray[np.int64]:
    """A share of so many epochs (one number, or an array of them), in whole ones, at least 1 of more than none: of half
    an epoch, one."""
    return np.maximum(np.floor(share * np.asarray(num_epochs) + 0.5), share > 0).astype(np.int64)


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
    """Whether it was paused at a rung, and may be promoted."""
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
        self.num_epochs = np.empty(0, dtype=np.int64)
        """(trials,): of each fold."""
        self.is_paused, self.is_feasible = np.empty(0, dtype=bool), np.empty(0, dtype=bool)
        """(trials,): whether it was paused at a rung and not given up since; whether it violates no constraint."""
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
        self.num_epochs = np.concatenate([self.num_epochs[kept], [runner.num_epochs for runner in new.values()]])
        paused, feasible = zip(*((runner.is_paused, runner.is_feasible) for runner in new.values()), strict=True)
        self.is_paused = np.concatenate([self.is_paused[kept], paused])
        self.is_feasible = np.concatenate([self.is_feasible[kept], feasible])
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

    def runner(self, row: int) -> Runner:
        """The trial of a row of `curves`."""
        return self._told[self.roots[row]]

    def give_up(self, numbers: Container[int]) -> None:
        """These paused trials do not go on any more."""
        rows = [row for row, root in enumerate(self.roots) if self._told[root].number in numbers]
        self.is_paused[rows] = False

    def means(self, shares: Sequence[float]) -> Floats:
        """(trials,): the mean of the values after these shares of the folds' epochs, folds with none left out. NaN for
        a trial that has not come so far."""
        rows = np.arange(len(self))
        seen = [
            self.curves[rows, fold, epochs_of(share, self.num_epochs) - 1] for fold, share in enumerate(shares) if share
        ]
        return np.asarray(np.mean(seen, axis=0), dtype=np.float64)


def estimate(curves: Floats, ahead: tuple[Floats, float] | None) -> float | None:
    """What a trial with these `curves` (folds, epochs) will come to: the mean of the one `ahead`, and the mean
    difference to its curves.

    The difference is taken where each fold was last seen, on the same fold at the same epoch, so that neither an easy
    fold nor an early epoch counts for or against the trial. A plain mean without one ahead; None without any value.
    """
    rows = [(fold, np.flatnonzero(~np.isnan(curve))) for fold, curve in enumerate(curves)]
    last = [(fold, int(seen[-1])) for fold, seen in rows if len(seen)]
    if not last:
        return None
    differences = [] if ahead is None else [curves[at] - _at(ahead[0], *at) for at in last]
    if ahead is None or np.isnan(differences).all():
        return float(np.mean([curves[at] for at in last]))
    return ahead[1] + float(np.nanmean(differences))


def _at(curves: Floats, fold: int, column: int) -> float:
    """The value in `fold` at that epoch, or at the last one of a training that was shorter; NaN where none is known."""
    curve = curves[fold, : column + 1]
    seen = curve[~np.isnan(curve)]
    return float(seen[-1]) if len(seen) else float("nan")
