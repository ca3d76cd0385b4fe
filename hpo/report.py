"""What a study has come to, as values: its trials counted, its best trial, and how sure we are of the score."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import optuna
from optuna.trial import TrialState

from hpo.study import FAILURE, FOLD_SCORES, IDENTITY, SPLIT_ID, best_trial, trial_folder
from hpo.tally import tally_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A 95 % confidence interval of a mean over folds. Bounds are NaN with fewer than two folds."""

    mean: float
    low: float
    high: float


def fold_interval(scores: list[float], *, folds: int) -> Interval:
    """The mean of fold scores with its interval, corrected for the overlap of the training sets.

    The variance of the mean is ``s^2 (1/n + 1/(folds - 1))`` for n scores: folds share training samples, so the plain
    ``s^2 / n`` would be too sure (Nadeau and Bengio 2003, "Inference for the generalization error").
    """
    center = fmean(scores)
    if len(scores) < 2:
        return Interval(mean=center, low=math.nan, high=math.nan)
    from scipy.special import stdtrit

    spread = math.sqrt(variance(scores) * (1 / len(scores) + 1 / (folds - 1)))
    half = float(stdtrit(len(scores) - 1, 0.975)) * spread
    return Interval(mean=center, low=center - half, high=center + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class BestTrial:
    """The winner of a study so far."""

    study: str
    number: int
    metric: str
    direction: str
    interval: Interval
    fold_scores: list[float]
    params: dict[str, Any]
    split_id: str | None
    """Identity of the samples and folds it was scored on."""
    folder: Path
    """Holds its ``config.yaml`` and the run directories of its folds."""


def describe_best(study: optuna.Study) -> BestTrial:
    """The best completed trial. Raises NoBestTrialError."""
    trial = best_trial(study)
    identity = study.user_attrs[IDENTITY]
    scores = list(trial.user_attrs[FOLD_SCORES])
    return BestTrial(
        study=study.study_name,
        number=trial.number,
        metric=identity["objective"]["metric"],
        direction=identity["objective"]["direction"],
        interval=fold_interval(scores, folds=identity["config"]["cross_validation.folds"]),
        fold_scores=scores,
        params=trial.params,
        split_id=trial.user_attrs.get(SPLIT_ID),
        folder=trial_folder(study, trial.number),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """How far a study is. `trials` counts by state; interrupted ones, which do not count as finished, are apart."""

    study: str
    trials: dict[str, int]
    interrupted: int
    best_trial: int | None
    best_value: float | None
    running: list[dict[str, Any]]
    """Number, parameters and reported epochs of each running trial."""
    failures: dict[str, int]
    """Failed trials by kind of failure."""
    last_failure: str | None
    """What the latest of them said."""


def describe_status(study: optuna.Study) -> StudyStatus:
    """Count and summarize the trials of `study`."""
    tally = tally_of(study)
    states, interrupted = tally.states(), tally.interrupted()
    best = best_trial(study) if states[TrialState.COMPLETE] else None
    failures = [failure for number, failure in tally.attributes(FAILURE) if number not in interrupted]
    return StudyStatus(
        study=study.study_name,
        trials={state.name: states[state] for state in TrialState},
        interrupted=len(interrupted),
        best_trial=best.number if best else None,
        best_value=best.value if best else None,
        running=[_running(study._storage.get_trial(trial_id)) for trial_id in tally.running()],
        failures=dict(Counter(failure["kind"] for failure in failures)),
        last_failure=failures[-1]["message"] if failures else None,
    )


def _running(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, "params": trial.params, "reports": len(trial.intermediate_values)}
