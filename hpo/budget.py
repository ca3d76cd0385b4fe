"""When a search ends: the rules of a study's `budget` as values, whichever comes first.

Spent is what a study has used of it, earlier sweeps and other processes included. A Budget says what is left of it and
why no new trial is begun; trials in progress finish. Nothing here reads a clock, a study or a file. What fits before
the deadline, which also ends what runs, is found in deadline.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from hpo.fold_statistics import SIGNIFICANCE, standard_error
from hpo.study_config import BudgetConfig

HOUR_S = 3600.0
PAUSED_NEED_IT = "has room for those paused trials only that may still win"

Scores = Sequence[float | None]
"""Of a trial, by fold; None for a fold that did not run to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What a study has come to, as far as budgets care."""

    trials: int
    """Those that are evaluated or were."""
    device_s: float
    """Device seconds of every attempt of every fold, failed and stopped ones too."""
    best_value: float | None
    """Of the completed trials."""
    streak: int
    """Finished trials in a row without a significant improvement (`trials_without_improvement`)."""
    seconds: float = 0.0
    """Since this sweep began its first trial."""
    has_time: bool = True
    """Whether a fold of a new trial is expected to end before the deadline."""
    climb_s: float = 0.0
    """What paused trials will take when no new one is begun, in seconds."""
    climb_device_s: float = 0.0
    """The same in device seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What is left of one budget. Of a target, `spent` is the best value and `left` the distance to go."""

    limit: float
    spent: float | None
    left: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The limits of a study."""

    config: BudgetConfig
    total: int
    """Trials to finish: ``budget.trials``, or the points of a smaller grid."""
    maximize: bool

    def reason_to_end(self, spent: Spent) -> str | None:
        """Why no new trial is begun: None while one may be, and empty when all trials were begun."""
        config = self.config
        if spent.trials >= self.total:
            return ""
        if config.timeout is not None and spent.seconds + spent.climb_s >= config.timeout:
            how = "is over" if spent.seconds >= config.timeout else PAUSED_NEED_IT
            return f"budget.timeout of {config.timeout:g} s {how}; the same command continues the study"
        if not spent.has_time:
            reason = f"budget.deadline of {config.deadline:g} s leaves no time for another trial"
            return f"{reason}; the same command continues the study"
        if config.target is not None and self._distance(spent.best_value) == 0.0:
            how = "higher" if self.maximize else "lower"
            reason = f"budget.target of {config.target:g} is reached: {spent.best_value:g}"
            return f"{reason}; trials in progress finish, a {how} one continues the study"
        limit_s = None if config.device_hours is None else config.device_hours * HOUR_S
        if limit_s is not None and spent.device_s + spent.climb_device_s >= limit_s:
            how = f"is spent: {_hours(spent.device_s)}" if spent.device_s >= limit_s else PAUSED_NEED_IT
            reason = f"budget.device_hours of {config.device_hours:g} {how}"
            return f"{reason}; trials in progress finish, a larger one continues the study"
        if config.patience is not None and spent.streak >= config.patience:
            reason = f"budget.patience is over: {spent.streak} trials in a row brought no significant improvement"
            return f"{reason}; trials in progress finish, a larger one continues the study"
        return None

    def overrun(self, spent: Spent) -> str:
        """What trials in progress took above ``device_hours``, once they have ended; "" when nothing."""
        limit_s = math.inf if self.config.device_hours is None else self.config.device_hours * HOUR_S
        if spent.device_s <= limit_s:
            return ""
        above = _hours(spent.device_s - limit_s)
        return f"{_hours(spent.device_s)} device-hours were spent in all, {above} above budget.device_hours"

    def left(self, spent: Spent) -> dict[str, Left]:
        """Of each budget that is set and outlasts a command; neither ``timeout`` nor ``deadline`` does."""
        config = self.config
        left = {"trials": _left(self.total, spent.trials)}
        if config.device_hours is not None:
            left["device_hours"] = _left(config.device_hours, spent.device_s / HOUR_S)
        if config.patience is not None:
            left["patience"] = _left(config.patience, spent.streak)
        if config.target is not None:
            distance = self._distance(spent.best_value)
            left["target"] = Left(limit=config.target, spent=spent.best_value, left=distance)
        return left

    def _distance(self, best: float | None) -> float | None:
        """From the best value to the target; 0 when it is reached, None without a value."""
        if best is None or self.config.target is None:
            return None
        return max(0.0, self.config.target - best if self.maximize else best - self.config.target)


def _left(limit: float, spent: float) -> Left:
    return Left(limit=limit, spent=spent, left=max(0, limit - spent))


def _hours(seconds: float) -> str:
    """Three digits of it: 2.01, or 0.000123."""
    return f"{seconds / HOUR_S:.3g}"


@dataclass(frozen=True, slots=True)
class Told:
    """A finished trial: its id, and its value when it is complete and violates no constraint."""

    trial_id: int
    value: float | None


def trials_without_improvement(
    told: Sequence[Told], is_better: Callable[[int, int], bool], *, maximize: bool, at_most: int
) -> int:
    """The longest run of last trials whose best is not significantly better than the best before them.

    `told` are the finished trials in the order in which they ended; those that were interrupted are none of them.
    Pruned and failed ones lengthen a run and improve nothing. The first complete trial is an improvement.
    `is_better` says so of two complete trials by their ids (`is_improvement`); it is asked only where the value is
    better. Runs longer than `at_most` are not looked for.
    """
    before = _best_so_far(told, maximize)
    recent: Told | None = None
    for length in range(1, min(at_most, len(told)) + 1):
        recent, earlier = _better(told[-length], recent, maximize), before[len(told) - length]
        if recent is None or (earlier is not None and _better(recent, earlier, maximize) is earlier):
            continue
        if earlier is None or is_better(recent.trial_id, earlier.trial_id):
            return length - 1
    return min(at_most, len(told))


def _best_so_far(told: Sequence[Told], maximize: bool) -> list[Told | None]:
    """The best of the first n trials, for each n."""
    best: list[Told | None] = [None]
    for trial in told:
        best.append(_better(trial, best[-1], maximize))
    return best


def _better(trial: Told, other: Told | None, maximize: bool) -> Told | None:
    """`trial` if its value is better, else `other`."""
    if trial.value is None:
        return other
    if other is None or other.value is None:
        return trial
    is_better = trial.value > other.value if maximize else trial.value < other.value
    return trial if is_better else other


def is_improvement(ours: Scores, theirs: Scores, *, folds: int, maximize: bool) -> bool:
    """Whether `ours` are better than `theirs` by more than the noise of the folds.

    A one-sided paired t-test over the folds that both ran, with their `standard_error`. With fewer than two common
    folds there is no noise to be seen, and any better mean will do.
    """
    pairs = [(our, their) for our, their in zip(ours, theirs, strict=False) if our is not None and their is not None]
    gains = [our - their if maximize else their - our for our, their in pairs]
    if len(gains) < 2:
        return not gains or gains[0] > 0
    from scipy.special import stdtrit

    return fmean(gains) > float(stdtrit(len(gains) - 1, 1 - SIGNIFICANCE)) * standard_error(gains, folds=folds)
