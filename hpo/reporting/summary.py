"""What a study has come to, as values: its trials counted, its best trial, and how sure we are of the score."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from hpo.budget import HOUR_S, Left
from hpo.criteria import as_tuple, objectives_of
from hpo.definition import joined_definition
from hpo.fold_statistics import Interval, fold_interval
from hpo.front import front_of
from hpo.ledger import ledger_of
from hpo.spending import budget_of, spent
from hpo.study import DEFINITION, IDENTITY, SPLIT_ID, best_trial, failures_of, kinds, trial_folder
from hpo.tally import FOLD_SCORES, VIOLATED, tally_of
from training.errors import ConfigError, DataError
from training.run_dir import Event, RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """How good a trial is by one objective."""

    metric: str
    direction: str
    interval: Interval
    fold_scores: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class BestTrial:
    """The winner of a study so far, or the trial that was chosen in its place."""

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
    further: tuple[Judgement, ...] = ()
    """Of several objectives, those after the first, which is above."""

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """By each objective."""
        first = Judgement(
            metric=self.metric, direction=self.direction, interval=self.interval, fold_scores=self.fold_scores
        )
        return first, *self.further


def describe_best(study: optuna.Study) -> BestTrial:
    """The best completed trial. Raises NoBestTrialError."""
    return describe_trial(study, best_trial(study))


def describe_front(study: optuna.Study) -> list[BestTrial]:
    """The trials of the Pareto front, the best in the first objective first. Raises NoBestTrialError."""
    return [describe_trial(study, trial) for trial in front_of(study)]


def describe_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> BestTrial:
    """A completed trial of `study`."""
    identity = study.user_attrs[IDENTITY]
    by_objective = zip(*map(as_tuple, trial.user_attrs[FOLD_SCORES]), strict=True)
    folds = identity["config"]["cross_validation.folds"]
    judgements = [
        Judgement(**objective, interval=fold_interval([*scores], folds=folds), fold_scores=[*scores])
        for objective, scores in zip(objectives_of(identity), by_objective, strict=True)
    ]
    first = judgements[0]
    return BestTrial(
        study=study.study_name,
        number=trial.number,
        metric=first.metric,
        direction=first.direction,
        interval=first.interval,
        fold_scores=first.fold_scores,
        further=tuple(judgements[1:]),
        params=trial.params,
        split_id=trial.user_attrs.get(SPLIT_ID),
        folder=trial_folder(study, trial),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """How far a study is. `trials` counts by state (those that are lost are RUNNING); interrupted ones, which do not
    count as finished, are apart."""

    study: str
    trials: dict[str, int]
    interrupted: int
    best_trial: int | None
    best_value: float | None
    front: list[int]
    """With several objectives: numbers of the trials that no other dominates."""
    infeasible: int
    """Completed and stopped trials that violate a constraint, by the folds that they ran."""
    running: list[dict[str, Any]]
    """Number, parameters and reported epochs of each running trial, and `folds`: finished epochs by running fold."""
    lost: list[dict[str, Any]]
    """The same of those that nobody evaluates any more, and `why`."""
    failures: dict[str, int]
    """Failed trials by kind of failure."""
    last_failure: str | None
    """What the latest of them said."""
    last_failed: tuple[int, int] | None
    """Its trial and fold, where it failed in one."""
    device_hours: float
    """What all jobs that have ended took, failed and stopped ones too."""
    left: dict[str, Left]
    """Of each budget that is set, as the study was last swept."""


def describe_status(study: optuna.Study) -> StudyStatus:
    """Count and summarize the trials of `study`."""
    tally = tally_of(study)
    states, interrupted = tally.states(), tally.interrupted()
    best = best_trial(study) if tally.best_value() is not None else None
    failed = failures_of(study)
    last, running = max(failed, default=None), [study._storage.get_trial(trial_id) for trial_id in tally.running()]
    lost = {each.trial_id: each.why_lost for each in ledger_of(study).held(study._study_id) if each.is_lost}
    return StudyStatus(
        study=study.study_name,
        trials={state.name: states[state] for state in TrialState},
        interrupted=len(interrupted),
        best_trial=best.number if best else None,
        best_value=best.value if best else None,
        front=tally.front(),
        infeasible=len({number for number, _ in tally.attributes(VIOLATED)} - tally.taken_up()),
        running=[_running(study, trial) for trial in running if trial._trial_id not in lost],
        lost=[_running(study, each) | {"why": lost[each._trial_id]} for each in running if each._trial_id in lost],
        failures=kinds(failed),
        last_failure=failed[last]["message"] if last is not None else None,
        last_failed=_failed_in(last, failed[last]) if last is not None else None,
        device_hours=tally.device_seconds() / HOUR_S,
        left=_left(study),
    )


def _failed_in(number: int, failure: dict[str, Any]) -> tuple[int, int] | None:
    fold = failure.get("fold")  # studies of a version before this one do not say
    return None if fold is None else (number, fold)


def _left(study: optuna.Study) -> dict[str, Left]:
    """Nothing where the study keeps no definition, or one of another version."""
    with contextlib.suppress(ConfigError, ValidationError):
        if stored := study.user_attrs.get(DEFINITION):
            definition = joined_definition(stored)
            return budget_of(definition).left(spent(study, definition))
    return {}


def _running(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    epochs, max_epochs = Counter[int](), study.user_attrs[IDENTITY].get("max_epochs", 1)
    for step in trial.intermediate_values:
        epochs[(step - 1) // max_epochs] += 1
    run_dirs = {int(path.name[5:]): RunDir(path) for path in trial_folder(study, trial).glob("fold_*")}
    folds = {
        fold: epochs[fold]
        for fold, run_dir in sorted(run_dirs.items())
        if not run_dir.result.exists() and not run_dir.error.exists()
    }
    if len(study.directions) > 1:  # Optuna keeps no values in between
        epochs = Counter({fold: num_evaluated(run_dir) for fold, run_dir in run_dirs.items()})
        folds = {fold: epochs[fold] for fold in folds}
    reports = epochs.total()
    return {"number": trial.number, "params": trial.params, "reports": reports, "folds": folds}


def num_evaluated(run_dir: RunDir) -> int:
    """Epochs that the job there has scored; 0 when it cannot be read."""
    with contextlib.suppress(DataError, OSError):
        return sum(record.event is Event.EVALUATE for record in run_dir.records())
    return 0
