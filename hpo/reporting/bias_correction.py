"""What the winner's score would be if it had not been chosen by it: bootstrap bias-corrected cross-validation.

The best of many configurations looks better than it is, since part of its lead is luck. BBC-CV (Tsamardinos,
Greasidou, Borboudakis 2018, "Bootstrapping the out-of-sample predictions for efficient and accurate
cross-validation", Machine Learning 107) repeats the choice on resamples of the samples and scores what was chosen on
those that are not in them. Nothing is trained again: the out-of-fold predictions of all configurations are enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hpo.reporting.leaderboard import completed
from hpo.reporting.out_of_fold import out_of_fold
from hpo.study import IDENTITY, SPLIT_ID, best_trial, trial_folder
from training.errors import DataError
from training.predictions import Predictions, can_score, score

RESAMPLES = 1000
MAX_CELLS = 4_000_000
"""Resamples x samples that are looked at together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrected:
    """The corrected score of the winner, or why there is none."""

    value: float | None
    low: float | None
    high: float | None
    """2.5 and 97.5 % of the resamples."""
    naive: float
    """The winner's mean over folds."""
    num_trials: int
    """Configurations that the choice was among: those that ran all folds and whose predictions are on disk."""
    num_without: int
    """Completed trials that were left out."""
    damaged: list[str]
    """Of those, which ones for what is wrong with their predictions, and where."""
    num_samples: int
    note: str
    """Why there is no value, or what to know of it."""


def correct(study: optuna.Study, *, resamples: int = RESAMPLES) -> Corrected:
    """Correct the score of the best trial. Raises NoBestTrialError."""
    objective, winner = study.user_attrs[IDENTITY]["objective"], best_trial(study)
    trials = completed(study)
    comparable = [trial for trial in trials if trial.user_attrs.get(SPLIT_ID) == winner.user_attrs.get(SPLIT_ID)]
    scored, damaged = dict[int, list[Predictions]](), list[str]()
    for trial in sorted(comparable, key=lambda trial: trial.number != winner.number):  # its samples are those of all
        try:
            samples = scored[winner.number][0].samples if winner.number in scored else None
            if kept := _kept(study, trial, objective["metric"], samples):
                scored[trial.number] = kept
        except DataError as error:
            damaged.append(f"trial {trial.number}: {error}")
    found = [scored[number] for number in sorted(scored)]
    base: dict[str, Any] = {"num_trials": len(found), "num_without": len(trials) - len(found), "damaged": damaged}
    base["naive"] = float(winner.values[0])
    if len(found) < 2 or winner.number not in scored:
        why = "fewer than two completed trials kept predictions from which the metric follows"
        why = why if len(found) < 2 else "the predictions of the winner are gone or damaged"
        return Corrected(value=None, low=None, high=None, num_samples=0, note=f"not corrected: {why}", **base)
    estimates = bootstrap(
        found, objective["metric"], maximize=objective["direction"] == "maximize", resamples=resamples
    )
    low, high = np.quantile(estimates, [0.025, 0.975])
    return Corrected(
        value=float(estimates.mean()),
        low=float(low),
        high=float(high),
        num_samples=len(found[0][0].samples),
        note="stopped trials are not among them, so it is corrected for the choice among the completed ones only",
        **base,
    )


def bootstrap(
    trials: Sequence[Sequence[Predictions]], metric: str, *, maximize: bool, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """(resamples,) the score, on the samples outside each resample, of the trial that is best inside it.

    `trials` have the predictions of each repeat, for the same samples. A repeat's score is that of all its folds
    together, a trial's the mean over its repeats. A resample that leaves no samples outside is left out.
    """
    sign, chosen = (1.0 if maximize else -1.0), []
    for inside in _resamples(len(trials[0][0].samples), resamples, np.random.default_rng(seed)):
        outside = (inside == 0).astype(np.float64)
        scores = np.stack([_score(repeats, metric, inside) for repeats in trials])
        best = np.nan_to_num(sign * scores, nan=-np.inf).argmax(axis=0)
        outer = np.stack([_score(repeats, metric, outside) for repeats in trials])
        chosen.append(outer[best, np.arange(len(best))])
    estimates = np.concatenate(chosen)
    finite: np.ndarray = estimates[np.isfinite(estimates)]
    return finite


def _kept(study: optuna.Study, trial: FrozenTrial, metric: str, samples: np.ndarray | None) -> list[Predictions] | None:
    """Its predictions of each repeat; None where `metric` does not follow from them. Raises DataError when they are
    damaged, or not of `samples`."""
    repeats = out_of_fold(study, trial, is_flat=True)
    if repeats is None or not all(can_score(each.rows, metric) for each in repeats):
        return None
    samples = repeats[0].samples if samples is None else samples
    if not all(np.array_equal(each.samples, samples) for each in repeats):
        raise DataError(f"predictions in {trial_folder(study, trial)} are not of the samples of the others")
    try:
        for each in repeats:
            score(each.rows, metric)
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"predictions in {trial_folder(study, trial)} are damaged ({error}); remove them") from error
    return repeats


def _score(repeats: Sequence[Predictions], metric: str, counts: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.mean([score(each.rows, metric, counts) for each in repeats], axis=0)
    return mean


def _resamples(num_samples: int, num_resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each sample is in each resample, some resamples at a time: (some, samples) float64."""
    at_once = max(1, MAX_CELLS // num_samples)
    for start in range(0, num_resamples, at_once):
        drawn = random.integers(0, num_samples, (min(at_once, num_resamples - start), num_samples))
        yield np.stack([np.bincount(each, minlength=num_samples) for each in drawn]).astype(np.float64)
