"""How sure a mean over folds is: its standard error and its interval, corrected for what folds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

SIGNIFICANCE = 0.05
"""What noise brings about with this probability at most is taken for a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A 95 % confidence interval of a mean over folds. Bounds are NaN with fewer than two folds."""

    mean: float
    low: float
    high: float


def standard_error(scores: Sequence[float], *, folds: int) -> float:
    """Of the mean of fold scores, corrected for the overlap of the training sets; NaN with fewer than two scores.

    The variance of the mean is ``s^2 (1/n + 1/(folds - 1))`` for n scores: folds share training samples, so the plain
    ``s^2 / n`` would be too sure (Nadeau and Bengio 2003, "Inference for the generalization error").
    """
    return math.sqrt(variance(scores) * (1 / len(scores) + 1 / (folds - 1))) if len(scores) > 1 else math.nan


def fold_interval(scores: Sequence[float], *, folds: int) -> Interval:
    """The mean of fold scores with its interval, by their `standard_error` and Student's t."""
    center = fmean(scores)
    if len(scores) < 2:
        return Interval(mean=center, low=math.nan, high=math.nan)
    from scipy.special import stdtrit

    half = float(stdtrit(len(scores) - 1, 0.975)) * standard_error(scores, folds=folds)
    return Interval(mean=center, low=center - half, high=center + half)
