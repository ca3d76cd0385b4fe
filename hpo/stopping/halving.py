"""Asynchronous successive halving over whole trials, each of which goes on from its checkpoints when it is promoted.

Li et al. 2020, "A system for massively parallel hyperparameter tuning". A rung is a number of epochs that all folds of
a trial train before the trial is paused; of those that reached it, one in `eta` goes on to the next. Optuna's Hyperband
decides alike, but trains what it promotes from the start.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from hpo.stopping.field import Field, Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Halving:
    """The rungs of a study, and who may climb."""

    rungs: tuple[int, ...]
    """Epochs, rising; the last is a whole training."""
    eta: int

    def next_rung(self, reached: int) -> int:
        """The lowest one above `reached` epochs."""
        return next(rung for rung in self.rungs if rung > reached)

    def promotable(self, field: Field, aside: Container[int] = (), *, is_end: bool) -> tuple[int, int] | None:
        """Number of the trial to go on with, and the rung it has reached; None when there is none yet.

        The highest rung first. A trial is among the best one in `eta` of those that reached its rung, so most are only
        known with time; at the end (`is_end`) at least the best of each rung goes on. Numbers in `aside` are left out.
        """
        for rung in reversed(self.rungs[:-1]):
            reached = self._reached(field, rung)
            num_promoted = max(int(is_end), len(reached) // self.eta)
            for root, _ in reached[:num_promoted]:
                number = field.number(root)
                if number not in aside and self._waits_at(field, root, rung):
                    return number, rung
        return None

    def hopeless(self, field: Field, total: int) -> Iterator[int]:
        """Roots of the paused trials that cannot be promoted any more, whatever the rest of `total` trials score."""
        num_kept = total
        for rung in self.rungs[:-1]:
            num_kept = max(1, num_kept // self.eta)
            ranked = self._reached(field, rung)
            yield from (root for root, _ in ranked[num_kept:] if self._waits_at(field, root, rung))

    def waiting(self, field: Field) -> Iterator[int]:
        """Roots of the trials that are paused at a rung, the least promising first."""
        for rung in self.rungs[:-1]:
            yield from (root for root, _ in self._reached(field, rung)[::-1] if self._waits_at(field, root, rung))

    def _reached(self, field: Field, rung: int) -> list[tuple[int, float]]:
        """Roots and mean values of the trials whose folds all reached it, the best first."""
        values: Floats = field.curves[:, :, rung - 1].mean(axis=1)
        found = [(field.roots[row], float(values[row])) for row in np.flatnonzero(~np.isnan(values))]
        return sorted(found, key=lambda each: (-each[1], each[0]))

    def _waits_at(self, field: Field, root: int, rung: int) -> bool:
        """Whether it came there and no further."""
        return bool(np.isnan(field.curves[field.roots.index(root), :, rung:]).all())


def rungs(lowest: int, eta: int, epochs: int) -> tuple[int, ...]:
    """`lowest`, each `eta` times the one before, and `epochs`."""
    found = [lowest]
    while found[-1] * eta < epochs:
        found.append(found[-1] * eta)
    return (*found, epochs)
