"""What happened in trials whose process was killed before it could say so, told once more from what they left.

A sweep that is killed leaves in MLflow runs that look as if they went on, and lacks those of its last seconds. The next
one tells of these trials again, from the study's database and the run directories.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import optuna
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import select

from hpo.definition import StudyDefinition
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from hpo.fold_ledger import FoldRow, FoldState
from hpo.ledger import Holder, ledger_of, this_host
from hpo.spending import budget_of
from hpo.study import FAILURE, OWNER, REASON, UID, best_value, num_finished, trial_folder
from hpo.tally import FOLD_SCORES, INTERRUPTED, SAMPLED
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig
from training.errors import ConfigError, TrainingError
from training.run_dir import RunDir

NEWEST = 1000
"""Trials that are looked at, the newest first."""
SETTLED_S = 600.0
"""How long ago a trial of another machine must have ended, whose process may yet say so itself."""

Told = tuple[Event, float]
"""An event, and the Unix time at which it happened."""


def opening(definition: StudyDefinition, study: optuna.Study) -> SweepStarted:
    """What a sweep of `study` says first, with what those before it did not say."""
    return SweepStarted(
        study=definition.config.study,
        study_uid=study.user_attrs[UID],
        metric=definition.criteria.metric,
        direction=definition.criteria.direction,
        num_splits=definition.job.cross_validation.num_splits,
        finished_trials=num_finished(study),
        total_trials=budget_of(definition).total,
        best_value=best_value(study),
        definition=definition.identity(),
        told_again=partial(told_again, study),
    )


def told_again(study: optuna.Study, known: Mapping[int, str]) -> Iterator[Told]:
    """The events of the newest trials that are over and that MLflow does not know, or has as RUNNING.

    `known` has the status of each trial there, by number. Those of a process that lives are left to it.
    """
    trial, ledger = TrialModel, ledger_of(study)
    states = (OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL)
    is_over = (trial.study_id == study._study_id, trial.state.in_(states))
    newest = select(trial.trial_id, trial.number).where(*is_over).order_by(trial.number.desc()).limit(NEWEST)
    with ledger.engine.connect() as connection:
        rows = connection.execute(newest).all()
    for trial_id, number in reversed(rows):
        if known.get(number, "RUNNING") == "RUNNING" and is_left(found := ledger.get_trial(trial_id)):
            yield from _of_trial(study, found)


def is_left(trial: FrozenTrial) -> bool:
    """Whether nobody else is about to say how it ended."""
    owner = trial.user_attrs.get(OWNER)
    holder = Holder(**owner) if owner else None
    if holder is None or holder.host == this_host():
        return holder is None or holder.is_dead
    return time.time() - _ended(trial) > SETTLED_S


def _ended(trial: FrozenTrial) -> float:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else time.time()


def _of_trial(study: optuna.Study, trial: FrozenTrial) -> Iterator[Told]:
    attributes, at = trial.user_attrs, _ended(trial)
    config = _config_in(trial_folder(study, trial))
    if SAMPLED in attributes and INTERRUPTED not in attributes and config is not None:
        began = trial.datetime_start.timestamp() if trial.datetime_start else at
        yield TrialStarted(number=trial.number, params=attributes[SAMPLED], config=config), began
        for row in ledger_of(study).folds(trial._trial_id):
            if row.state is FoldState.COMPLETE and row.trained_by == trial.number:
                yield from _of_fold(JobLabel(study=study.study_name, trial=trial.number, fold=row.fold), row)
    failure = attributes.get(FAILURE)
    reason = "its process ended" if INTERRUPTED in attributes else attributes.get(REASON, "")
    scores = tuple(tuple(score) if isinstance(score, list) else score for score in attributes.get(FOLD_SCORES, ()))
    values = trial.values or [None]
    yield (
        TrialFinished(
            number=trial.number,
            state=TrialState(trial.state.name),
            value=values[0] if len(values) == 1 else tuple(values),
            fold_scores=scores,
            reason=f"{failure['kind']}: {failure['message']}" if failure else reason,
        ),
        at,
    )


def _config_in(folder: Path) -> JobConfig | None:
    """None where it is gone or damaged."""
    try:
        return RunDir(folder).load_config()
    except ConfigError:
        return None


def _of_fold(label: JobLabel, row: FoldRow) -> Iterator[Told]:
    """As far as its run directory is there, and whole."""
    run_dir = RunDir(Path(row.run_dir))
    try:
        outcome, config, records = run_dir.load_result(), run_dir.load_config(), run_dir.records()
    except (TrainingError, OSError):
        return
    if outcome is None:
        return
    began = records[0].time if records else time.time()
    result = TrialResult(
        status=JobStatus.COMPLETE,
        metrics=outcome.metrics,
        failure=None,
        duration_s=records[-1].time - began if records else 0.0,
        world_size=outcome.world_size,
        run_dir=run_dir,
        split_id=outcome.split_id,
    )
    yield JobStarted(label=label, config=config, run_dir=run_dir), began
    yield from ((JobProgress(label=label, record=record), record.time) for record in records)
    yield JobFinished(label=label, result=result), records[-1].time if records else began
