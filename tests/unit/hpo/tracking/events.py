"""What a sweep or a job tells, and a tracker that hears it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    Notice,
    SweepFinished,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from hpo.tracking import MlflowTracker
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig
from training.errors import Failure
from training.run_dir import Event as RecordEvent
from training.run_dir import Record, RunDir

CONFIG = JobConfig()
ALONE = JobLabel(study="bert_cv")


def sweep(uid: str = "u1") -> SweepStarted:
    return SweepStarted(
        study="bert_cv",
        study_uid=uid,
        metric="accuracy",
        direction="maximize",
        num_splits=2,
        finished_trials=0,
        total_trials=3,
        best_value=None,
        definition={"objective": {"metric": "accuracy"}},
    )


def trial(number: int = 0) -> TrialStarted:
    return TrialStarted(number=number, params={"optimizer.lr": 1e-5, "optimizer.name": "sgd"}, config=CONFIG)


def told(number: int = 0, state: TrialState = TrialState.COMPLETE, **changes: Any) -> TrialFinished:
    values: dict[str, Any] = {"value": 0.75, "fold_scores": (0.5, 1.0), "best_value": 0.75} | changes
    return TrialFinished(number=number, state=state, **values)


def label(fold: int = 0, number: int = 0) -> JobLabel:
    return JobLabel(study="bert_cv", trial=number, fold=fold)


def started(job: JobLabel, path: str = "/runs/fold", config: JobConfig = CONFIG) -> JobStarted:
    return JobStarted(label=job, config=config, run_dir=RunDir(Path(path)))


def progress(job: JobLabel, step: int, event: RecordEvent = RecordEvent.TRAIN, **values: float) -> JobProgress:
    return JobProgress(label=job, record=Record(event=event, step=step, epoch=0, time=100.5 + step, values=values))


def finished(job: JobLabel, status: JobStatus = JobStatus.COMPLETE, failure: Failure | None = None) -> JobFinished:
    result = TrialResult(
        status=status,
        metrics={},
        failure=failure,
        duration_s=1.0,
        world_size=2,
        run_dir=RunDir(Path("/runs/fold")),
    )
    return JobFinished(label=job, result=result)


def interrupted(job: JobLabel) -> JobFinished:
    return JobFinished(label=job, result=None)


def one_trial(number: int = 0) -> list[Event]:
    """A trial of two folds, from its start to its end."""
    folds = [label(fold, number) for fold in (0, 1)]
    jobs: list[Event] = []
    for job in folds:
        jobs += [started(job), progress(job, 10, loss=0.7), finished(job)]
    return [trial(number), *jobs, told(number)]


def everything() -> list[Event]:
    return [sweep(), Notice(message="hello"), *one_trial(), SweepFinished(interrupted=True)]


def told_if_running(*events: Event) -> Callable[[Mapping[int, str]], list[tuple[Event, float]]]:
    """The past of a study of one trial, as hpo.past tells it."""
    return lambda known: [(event, time.time()) for event in events] if known.get(0, "RUNNING") == "RUNNING" else []


def send(tracker: MlflowTracker, *events: Event) -> None:
    """Each event is written before the next one comes."""
    for event in events:
        tracker.hear(event, time.time())
        tracker.write()


def send_at_once(tracker: MlflowTracker, *events: Event) -> None:
    """The events come faster than they are written."""
    for event in events:
        tracker.hear(event, time.time())
    tracker.write()
