"""Successive halving: every trial is trained a little, the best of them more, and few to the end.

Li et al. 2018, "Hyperband" (its innermost loop); over folds as well as epochs here. A rung is how much of each fold a
trial trains before it is paused; one that is promoted goes on from its checkpoints. Others promote whoever is among the
best at any moment (ASHA, Li et al. 2020), and so pay for each leader of the hour. Here places are given away when
`FIRST` trials have come to the first rung, when `GROWTH` times as many have, and so on, and at the end: the best of the
first so many go on, from no rung before all who are to have come to it, so that it makes no difference how many
processes ask.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hpo.stopping.field import Field, Floats, Runner, epochs_of

FIRST, GROWTH = 10, 4
"""Trials at the first rung when places are given away for the first time, and times as many for each next time."""

LENIENCE = 9 / 8
"""So many times as many go on from half a fold as from a whole one."""

Rows = NDArray[np.int64]
Rung = tuple[float, ...]
"""By fold, the share of its epochs that is trained; 0 of one that is not begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Halving:
    """The rungs of a study, and who may climb."""

    rungs: tuple[Rung, ...]
    """Rising; the last is a whole training."""
    places: tuple[float, ...]
    """By rung but the last, the part of all trials that goes on from it; falling."""

    def until(self, rung: int, epochs: int) -> tuple[int, ...]:
        """Epochs of each fold that a trial of `epochs` trains before it is paused at this rung."""
        return tuple(int(epochs_of(share, epochs)) for share in self.rungs[rung])

    def promotions(self, field: Field, aside: Container[int] = (), *, is_end: bool = False) -> list[tuple[Runner, int]]:
        """The trials to go on with now, and the rung they go on to.

        The lowest rung first, and there the best; nobody goes on from the next one before all who are to have come to
        it. At the end (`is_end`) all trials count, and the best of however few comes to the last rung. Those with
        numbers in `aside` are on their way already.
        """
        count = int((~np.isnan(field.means(self.rungs[0]))).sum())
        settled = count if is_end else _settled(count)
        means = self._means(field, settled)
        for rung in range(len(self.rungs) - 1):
            ranked = _ranked(field, means[rung])
            keep = self.places[rung] / (self.places[rung - 1] if rung else 1.0)
            num_promoted = min(self._num_promoted(rung, settled), _rounded_up(keep * len(ranked)))
            waiting = [*_waiting(field, means, rung, ranked[:num_promoted])]
            if waiting:
                return [(runner, rung + 1) for runner in waiting if runner.number not in aside]
        return []

    def hopeless(self, field: Field, total: int) -> Iterator[Runner]:
        """The paused trials that cannot be promoted any more, whatever the rest of `total` trials score."""
        means = self._means(field)
        for rung in range(len(self.rungs) - 1):
            yield from _waiting(field, means, rung, _ranked(field, means[rung])[self._num_promoted(rung, total) :])

    def waiting(self, field: Field) -> Iterator[Runner]:
        """The trials that are paused at a rung, the least promising first."""
        means = self._means(field)
        for rung in range(len(self.rungs) - 1):
            yield from _waiting(field, means, rung, _ranked(field, means[rung])[::-1])

    def epochs_to_climb(self, field: Field, epochs: int, total: int = 0) -> int:
        """Epochs, over all folds, that promotions would take if no other trial came, or as many as make `total`;
        `epochs` are those of a fold."""
        reached = [int((~np.isnan(row)).sum()) for row in self._means(field)]
        count = max(reached[0], total)
        places = [max(0, self._num_promoted(rung, count) - above) for rung, above in enumerate(reached[1:])]
        return sum(place * step for place, step in zip(places, self._steps(epochs), strict=True))

    def share(self, count: int, epochs: int) -> float:
        """What `count` trials train of all their folds of `epochs`, those apart that go on early and are overtaken."""
        climbed = sum(self._num_promoted(rung, count) * step for rung, step in enumerate(self._steps(epochs)))
        return (count * sum(self.until(0, epochs)) + climbed) / (count * epochs * len(self.rungs[0]))

    def _steps(self, epochs: int) -> list[int]:
        """Epochs over all folds from each rung to the next."""
        sums = [sum(self.until(rung, epochs)) for rung in range(len(self.rungs))]
        return [after - before for before, after in pairwise(sums)]

    def _num_promoted(self, rung: int, count: int) -> int:
        """Of `count` trials, how many go on from this rung."""
        return _rounded_up(self.places[rung] * count)

    def _means(self, field: Field, settled: int | None = None) -> Floats:
        """(rungs, trials): what the trials had come to at each rung; NaN where one has not come to it, for those that
        were stopped for good, and for all but the first `settled`."""
        means = np.array([field.means(rung) for rung in self.rungs])
        if settled is not None:
            rows = np.flatnonzero(~np.isnan(means[0]))
            first = rows[np.argsort(np.array(field.roots, dtype=int)[rows])][:settled]
            means[:, np.setdiff1d(np.arange(len(field)), first)] = np.nan
        means[:, np.isnan(means[-1]) & ~field.is_paused] = np.nan
        return means


def _rounded_up(number: float) -> int:
    """What is whole but for the arithmetic stays; of more than nothing it is at least 1."""
    return math.ceil(number * (1 - 1e-9))


def _settled(count: int) -> int:
    """Of so many trials at the first rung, those whose places are given away."""
    if count < FIRST:
        return 0
    settled = FIRST
    while settled * GROWTH <= count:
        settled *= GROWTH
    return settled


def _ranked(field: Field, means: Floats) -> Rows:
    """Rows of the field at a rung, the best first; those that violate a constraint after all others."""
    rows = np.flatnonzero(~np.isnan(means))
    return rows[np.lexsort((np.array(field.roots, dtype=int)[rows], -means[rows], ~field.is_feasible[rows]))]


def _waiting(field: Field, means: Floats, rung: int, rows: Rows) -> Iterator[Runner]:
    """Of these rows those that are paused at the rung."""
    return map(field.runner, rows[field.is_paused[rows] & np.isnan(means[rung + 1, rows])])


def fold_halving(num_folds: int, max_epochs: int, keep: float) -> Halving:
    """Half of the first fold where trials may have two epochs, all of it, two folds, four, and so on, and all.

    From each rung a part of `keep` goes on. Half a fold says less and the rest of it costs little, so from there
    `LENIENCE` times as many do, and that much fewer from the next one.
    """
    counts = [1]
    while 2 * counts[-1] < num_folds:
        counts.append(2 * counts[-1])
    counts += [num_folds] if num_folds > 1 else []
    rungs = [(1.0,) * count + (0.0,) * (num_folds - count) for count in counts]
    if max_epochs > 1:
        rungs.insert(0, (0.5, *[0.0] * (num_folds - 1)))
    places = [keep**rung for rung in range(1, len(rungs))]
    if max_epochs > 1:
        places[0] = min(LENIENCE * keep, 1.0)
    return Halving(rungs=tuple(rungs), places=tuple(places))


def epoch_halving(lowest: int, eta: int, epochs: int, num_folds: int) -> Halving:
    """Of all folds `lowest` epochs, each time `eta` times as many, and `epochs`; one in `eta` goes on."""
    found = [lowest]
    while found[-1] * eta < epochs:
        found.append(found[-1] * eta)
    rungs = tuple((rung / epochs,) * num_folds for rung in (*found, epochs))
    return Halving(rungs=rungs, places=tuple((1 / eta) ** rung for rung in range(1, len(rungs))))
