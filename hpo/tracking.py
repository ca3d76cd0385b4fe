"""Mirrors what happens into MLflow: one experiment a study, its runs nested study > trial > fold.

A run is found by its tags before it is created, so a continued sweep or a repeated event makes no second one.
What MLflow does not take never stops a training: it is said once, and written when MLflow answers again. Only
the orchestrator's process writes, from one thread, through an MlflowClient: no active run, no global tracking
URI. `mlflow` is imported with the first event, because that takes seconds.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
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
from hpo.masking import masked, secrets_of
from hpo.mlflow_runs import Metrics, Run, Runs, Values
from hpo.trial import JobStatus
from training.config import flatten
from training.run_dir import Event as RecordEvent
from training.run_dir import Record

WRITE_INTERVAL_S = 1.0
"""The records of a running job are gathered for this long and sent in one batch."""
PAUSE_FACTOR = 10
"""A write that failed after t seconds is followed by a pause of this many t: it costs a tenth of the time."""
LAST_WRITES_S = 15.0
"""The end of a sweep tries for this long to write what is missing."""
MAX_RECORDS_KEPT = 10_000
"""Records kept per job while MLflow is away; the oldest go first."""
_SECTION = {RecordEvent.TRAIN: "train", RecordEvent.EVALUATE: "eval"}
_OF_TRIAL = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
_OF_JOB = {JobStatus.COMPLETE: "FINISHED", JobStatus.STOPPED: "FINISHED", JobStatus.FAILED: "FAILED"}


def connect(uri: str | None, root: Path, notice: Callable[[str], None]) -> MlflowTracker | NoTracker:
    """The tracker of `uri`; None is MLFLOW_TRACKING_URI or a SQLite file in `root`, "off" tracks nothing."""
    root = root.absolute()
    path = f"{root}/mlflow.db".replace("%", "%25").replace("?", "%3F")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"
    if uri == "off":
        return NoTracker()
    return MlflowTracker(uri, artifact_root=root / "mlartifacts", notice=notice)


class NoTracker:
    """Tracks nothing."""

    where = "off"

    def __call__(self, event: Event) -> None:
        """Ignore `event`."""

    def log_model(self, label: JobLabel, folder: Path, *, name: str, metrics: Metrics, params: Values) -> str:
        """Log nothing: there is no URI."""
        return ""


class MlflowTracker:
    """A listener that writes what it hears to the MLflow at `uri`. It never raises."""

    def __init__(
        self,
        uri: str,
        *,
        artifact_root: Path,
        notice: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = masked(uri)
        """The tracking URI without credentials."""
        self._secrets = secrets_of(uri)
        self._runs = Runs(uri, artifact_root)
        self._notice, self._clock, self._noticed = notice, clock, False
        self._sweep: SweepStarted | None = None
        self._trials: dict[int, TrialStarted] = {}
        self._jobs: dict[JobLabel, JobStarted] = {}
        self._records: dict[JobLabel, deque[Record]] = {}
        self._records_due: dict[JobLabel, float] = {}
        self._unsent: list[JobFinished | TrialFinished] = []
        self._paused_until = -math.inf

    def __call__(self, event: Event) -> None:
        """Write `event`, or keep what is needed to write it later."""
        self._remember(event)
        match event:
            case SweepFinished():
                deadline = self._clock() + LAST_WRITES_S
                for write in self._last_writes(event):
                    if self._clock() < deadline:
                        self._try(write)
            case Notice():
                pass
            case JobProgress(label=label) if self._clock() < self._records_due.get(label, -math.inf):
                pass
            case JobFinished() | TrialFinished():
                self._unsent.append(event)  # before it is tried: Ctrl-C may come in the middle
                self._write_unsent(event)
                if event not in self._unsent:
                    self._write_late()
            case _ if not self._is_paused(event) and self._try(partial(self._write, event)):
                self._write_late()

    def log_model(self, label: JobLabel, folder: Path, *, name: str, metrics: Metrics, params: Values) -> str:
        """Log `folder` as a model of that job (finished or not) and register it as a version of `name`.

        Returns ``models:/NAME/VERSION``, or "" when MLflow did not take it, which is said every time.
        """
        try:
            with warnings.catch_warnings(action="ignore"):
                uri = self._runs.log_model(self._job_run(label), folder, name, metrics, params)
        except Exception as error:
            self._notice(f"the model in {folder} is not registered in MLflow: {self._reason(error)}")
            return ""
        self._paused_until = -math.inf
        self._write_late()
        return uri

    def _remember(self, event: Event) -> None:
        # First of all, so that a run which could not be created at its start is created by what follows.
        match event:
            case SweepStarted():
                self._sweep = event
                self._trials.clear()
            case TrialStarted():
                self._trials[event.number] = event
            case JobStarted():
                self._jobs[event.label] = event
            case JobProgress() if event.record.event in _SECTION:
                self._records.setdefault(event.label, deque(maxlen=MAX_RECORDS_KEPT)).append(event.record)

    def _try(self, write: Callable[[], None]) -> bool:
        started = self._clock()
        try:
            # MLflow warns mostly of its own use of SQLAlchemy, nothing a user can act on.
            with warnings.catch_warnings(action="ignore"):
                write()
        except Exception as error:  # whatever MLflow, its database or the network raises
            self._paused_until = self._clock() + PAUSE_FACTOR * (self._clock() - started)
            if not self._noticed:
                self._noticed = True
                self._notice(
                    f"MLflow ({self.where}) does not take the results: {self._reason(error)}."
                    " Training goes on and MLflow is tried again; to do without it, set `mlflow: off`."
                )
            return False
        return True

    def _is_paused(self, event: Event) -> bool:
        # The end of a job without a study is the last event there is: there is no later to wait for.
        is_last = isinstance(event, JobFinished) and event.label.trial is None
        return self._clock() < self._paused_until and not is_last

    def _reason(self, error: Exception) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return masked(text)[:500]

    def _write_late(self) -> None:
        # MLflow answers. When it refuses one even now, the pause that follows keeps the others for later, too.
        for event in list(self._unsent):
            self._write_unsent(event)

    def _write_unsent(self, event: JobFinished | TrialFinished) -> None:
        if not self._is_paused(event) and self._try(partial(self._write, event)):
            self._unsent.remove(event)

    def _last_writes(self, event: SweepFinished) -> Iterator[Callable[[], None]]:
        for unsent in self._unsent * 2:  # what fails once is tried once more, after the others
            if unsent in self._unsent:
                yield partial(self._write_last, unsent)
        for run in self._runs.not_ended():
            yield partial(self._runs.end, run, "KILLED")
        status = "KILLED" if event.interrupted else "FINISHED"
        yield lambda: self._runs.end(self._study_run(), status)

    def _write_last(self, event: JobFinished | TrialFinished) -> None:
        self._write(event)
        self._unsent.remove(event)

    def _write(self, event: Event) -> None:
        match event:
            case SweepStarted():
                self._study_run(starts=True)
            case TrialStarted():
                self._trial_run(event.number, starts=True)
            case JobStarted():
                self._job_run(event.label, starts=True)
            case JobProgress():
                self._records_due[event.label] = self._clock() + WRITE_INTERVAL_S
                self._write_records(event.label)
            case JobFinished():
                self._finish_job(event)
            case TrialFinished():
                self._finish_trial(event)

    def _write_records(self, label: JobLabel) -> None:
        metrics = [
            (f"{_SECTION[record.event]}/{name}", value, record.time, record.step)
            for record in self._records.get(label, ())
            for name, value in record.values.items()
        ]
        self._runs.log(self._job_run(label), metrics=metrics)
        self._records.pop(label, None)

    def _finish_job(self, event: JobFinished) -> None:
        run, result = self._job_run(event.label), event.result
        self._write_records(event.label)
        if result is None:
            return self._runs.end(run, "KILLED")
        tags: dict[str, Any] = {"hpo.status": result.status, "hpo.world_size": result.world_size}
        if result.failure is not None:
            tags |= {"hpo.failure_kind": result.failure.kind, "hpo.failure_message": result.failure.message}
        self._runs.log(run, tags=tags)
        self._runs.end(run, _OF_JOB[result.status])

    def _finish_trial(self, event: TrialFinished) -> None:
        run, now, sweep = self._trial_run(event.number), time.time(), self._known_sweep
        metrics = [(f"fold_{sweep.metric}", score, now, fold) for fold, score in enumerate(event.fold_scores)]
        if event.value is not None:
            metrics.append((sweep.metric, event.value, now, 0))
        reason = {"hpo.reason": event.reason} if event.reason else {}
        self._runs.log(run, metrics=metrics, tags={"hpo.state": event.state, **reason})
        if event.best_value is not None:
            best = (f"best_{sweep.metric}", event.best_value, now, event.number)
            self._runs.log(self._study_run(), metrics=[best])
        # Its folds ended before it, unless the process that ran them was killed.
        folds = {**self._identity("trial", trial=event.number), "hpo.kind": "fold"}
        for fold_run in self._runs.running(sweep.study, folds):
            self._runs.end(fold_run, "KILLED")
        self._runs.end(run, _OF_TRIAL[event.state])

    @property
    def _known_sweep(self) -> SweepStarted:
        if self._sweep is None:
            raise LookupError("a trial outside a sweep: SweepStarted must come first")
        return self._sweep

    def _identity(self, kind: str, **numbers: int | None) -> dict[str, str]:
        tags = {"kind": kind, "study_uid": self._known_sweep.study_uid, **numbers}
        return {f"hpo.{key}": str(value) for key, value in tags.items()}

    def _study_run(self, *, starts: bool = False) -> str:
        sweep = self._known_sweep
        run = Run(
            experiment=sweep.study,
            name=sweep.study,
            identity=self._identity("study"),
            tags={"hpo.metric": sweep.metric, "hpo.direction": sweep.direction},
            files={"study.yaml": sweep.definition},
        )
        return self._runs.ensure(run, starts=starts)

    def _trial_run(self, number: int, *, starts: bool = False) -> str:
        # A trial can end that never started here: its process was killed, or its configuration was not valid.
        trial = self._trials.get(number)
        run = Run(
            experiment=self._known_sweep.study,
            name=f"trial {number}",
            identity=self._identity("trial", trial=number),
            tags={"mlflow.parentRunId": self._study_run()},
            params=trial.params if trial else {},
            files={"config.yaml": trial.config.model_dump()} if trial else {},
        )
        return self._runs.ensure(run, starts=starts)

    def _job_run(self, label: JobLabel, *, starts: bool = False) -> str:
        job, config = self._jobs[label], self._jobs[label].config.model_dump()
        run_dir = {"hpo.run_dir": str(job.run_dir.path)}
        if label.trial is None:
            identity, parent = {"hpo.kind": "job", **run_dir}, {}
        else:
            identity = self._identity("fold", trial=label.trial, fold=label.fold)
            parent = {"mlflow.parentRunId": self._trial_run(label.trial)}
        run = Run(
            experiment=label.study,
            name=job.run_dir.path.name if label.trial is None else str(label),
            identity=identity,
            tags={**run_dir, **parent},
            params=dict(flatten(config)),
            files={"config.yaml": config},
        )
        return self._runs.ensure(run, starts=starts)
