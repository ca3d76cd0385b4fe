"""The rule for several objectives: stop a trial that another one dominates, by the folds that both ran.

A trial dominates another when it is as good in every objective and better in one. Whether one will, over all folds, is
judged from the folds that have ended: the differences on the same folds say how far the two are apart, and the noise of
such a difference is learned from all complete trials (what is left of their scores without trial and fold effects).
From both follows the chance that the trial ends up ahead in an objective. The sum over the objectives is no less than
its chance not to be dominated; when that is below `risk`, it is stopped. An objective without noise, such as a number
of parameters, is decided by its difference alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpo.stopping.field import Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Racer:
    """What one trial has scored, larger is better."""

    number: int
    root: int
    """The same, or of the first one, where trials went on with each other."""
    num_epochs: int
    """Of each of its folds."""
    scores: Floats
    """(folds, objectives), NaN where a fold has not ended."""

    @property
    def is_complete(self) -> bool:
        """Whether every fold ran to its end."""
        return not np.isnan(self.scores).any()


def dominates(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether `values`, larger is better, are as good as `others` in every objective, and better in one."""
    return all(a >= b for a, b in zip(values, others, strict=True)) and any(
        a > b for a, b in zip(values, others, strict=True)
    )


def dominator(scores: Floats, told: Floats, *, risk: float) -> tuple[int, float] | None:
    """Which of `told` (trials, folds, objectives), all complete, dominates `scores` (folds, objectives), and the chance
    that it will not.

    None when the chance is at least `risk` against each, and with fewer than two trials or ended folds of `scores`
    none: there is no noise to be seen.
    """
    ended = ~np.isnan(scores).any(axis=1)
    if len(told) < 2 or told.shape[1] < 2 or not ended.any():
        return None
    behind = (told[:, ended] - scores[ended]).mean(axis=1)
    chances = _chances_to_be_ahead(behind, _noise(told), int(ended.sum()), told).sum(axis=1)
    chances[~(behind > 0).any(axis=1)] = 1.0  # the same in every objective is not dominated
    row = int(np.argmin(chances))
    return (row, float(chances[row])) if chances[row] < risk else None


def _noise(told: Floats) -> Floats:
    """(objectives,): variance of a fold's score, without trial and fold effects."""
    # By trial first: an objective that is the same on all folds is left as exact zeros.
    centered = told - told.mean(axis=1, keepdims=True)
    residual = centered - centered.mean(axis=0)
    variance: Floats = (residual**2).sum(axis=(0, 1)) / ((told.shape[0] - 1) * (told.shape[1] - 1))
    return variance


def _chances_to_be_ahead(behind: Floats, noise: Floats, num_ended: int, told: Floats) -> Floats:
    """(trials, objectives): of a better mean over all folds than each of `told`, `behind` it by so much so far."""
    from scipy.special import stdtr

    num_trials, num_folds, _ = told.shape
    # The folds that have ended count as they are; only the others can still make a difference.
    deviation = np.sqrt(2 * noise * (1 / num_ended - 1 / num_folds))
    is_exact = deviation == 0
    scaled = behind / np.where(is_exact, 1.0, deviation)
    chances: Floats = np.where(is_exact, behind < 0, stdtr((num_trials - 1) * (num_folds - 1), -scaled))
    return chances
