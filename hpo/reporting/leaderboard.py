"""The completed trials of a study, best first, and which of them are as good as the best as far as folds can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.fold_statistics import SIGNIFICANCE, Interval, fold_interval, standard_error
from hpo.study import IDENTITY, SPLIT_ID, best_trial, is_feasible
from hpo.tally import FOLD_SCORES, INTERRUPTED


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A paired comparison over folds: how much worse than the best, with its 95 % interval."""

    worse_by: Interval
    p_value: float
    """Two-sided. 1 when all folds have the same score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One completed trial."""

    number: int
    interval: Interval
    fold_scores: list[float]
    comparison: Comparison | None
    """With the best trial; None for itself, with fewer than two folds, and when the two were scored on other folds."""
    is_tied: bool
    """With the best; so is the best itself."""
    params: dict[str, Any]


def rank_trials(study: optuna.Study) -> list[Standing]:
    """All completed trials, best first. Raises NoBestTrialError."""
    winner, identity = best_trial(study), study.user_attrs[IDENTITY]
    folds, maximize = identity["config"]["cross_validation.folds"], identity["objective"]["direction"] == "maximize"
    others = [trial for trial in completed(study) if trial.number != winner.number]
    others.sort(key=lambda trial: (-trial.values[0] if maximize else trial.values[0], trial.number))
    return [_standing(trial, winner, folds, maximize=maximize) for trial in (winner, *others)]


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran all their folds, violate no constraint and count."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        trial for trial in trials if INTERRUPTED not in trial.user_attrs and is_feasible(trial) and scores_of(trial)
    ]


def scores_of(trial: FrozenTrial) -> list[float]:
    """The scores of the folds that ran to their end, by number."""
    return [score for score in trial.user_attrs.get(FOLD_SCORES, ()) if score is not None]


def compare(best: Sequence[float], other: Sequence[float], *, folds: int, maximize: bool) -> Comparison:
    """How much worse `other` is than `best`, fold by fold (at least two of them).

    A t-test with ``n - 1`` degrees of freedom on the mean difference and its `standard_error`.
    """
    sign = 1.0 if maximize else -1.0
    differences = [sign * (a - b) for a, b in zip(best, other, strict=True)]
    interval = fold_interval(differences, folds=folds)
    spread = standard_error(differences, folds=folds)
    if spread == 0.0:
        return Comparison(worse_by=interval, p_value=1.0 if fmean(differences) == 0.0 else 0.0)
    from scipy.special import stdtr

    p_value = 2.0 * float(stdtr(len(differences) - 1, -abs(interval.mean) / spread))
    return Comparison(worse_by=interval, p_value=p_value)


def _standing(trial: FrozenTrial, winner: FrozenTrial, folds: int, *, maximize: bool) -> Standing:
    scores, best = scores_of(trial), scores_of(winner)
    is_winner = trial.number == winner.number
    is_paired = len(scores) == len(best) > 1 and trial.user_attrs.get(SPLIT_ID) == winner.user_attrs.get(SPLIT_ID)
    found = compare(best, scores, folds=folds, maximize=maximize) if is_paired and not is_winner else None
    return Standing(
        number=trial.number,
        interval=fold_interval(scores, folds=folds),
        fold_scores=scores,
        comparison=found,
        is_tied=is_winner or (found is not None and found.p_value >= SIGNIFICANCE),
        params=trial.params,
    )
