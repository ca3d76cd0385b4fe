"""The folds of one trial: which to run next, what each said, and what they come to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from hpo.events import JobLabel
from hpo.job import Job
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Event, Record, RunDir

OnEpoch = Callable[[int, int, float], str]
"""Hears (fold, finished epochs, objective value); returns why the trial is to stop, or "" to let it go on."""


class Folds:
    """The folds of one trial, in order or several at a time, until all are scored, one fails or it is stopped.

    The same `config` gives the same folds in every trial. Used by one thread.
    """

    def __init__(self, config: JobConfig, folder: Path, label: JobLabel, metric: str, on_epoch: OnEpoch) -> None:
        self.config, self._folder, self._label = config, folder, label
        self._metric, self._on_epoch = metric, on_epoch
        self._num_splits = config.cross_validation.num_splits
        self._started = 0
        self._running: dict[int, RunDir] = {}
        self._scores: dict[int, float] = {}
        self.split_id = config.cross_validation.split_id
        """Identity of the samples and folds, once a fold was trained."""
        self.failure: Failure | None = None
        self.stopped = ""
        """Why the trial was stopped."""

    @property
    def scores(self) -> tuple[float, ...]:
        """Of the folds that ran to their end, by number."""
        return tuple(score for _, score in sorted(self._scores.items()))

    @property
    def mean(self) -> float:
        """The trial's value."""
        return fmean(self.scores)

    @property
    def num_running(self) -> int:
        """Folds that run now."""
        return len(self._running)

    @property
    def num_left(self) -> int:
        """Folds to start."""
        return 0 if self.failure or self.stopped else self._num_splits - self._started

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to start."""
        return not self.num_running and not self.num_left

    @property
    def next_label(self) -> JobLabel:
        """Of the fold that `start` would give."""
        return JobLabel(study=self._label.study, trial=self._label.trial, fold=self._started)

    def start(self, changes: Mapping[str, Any]) -> Job:
        """The next fold as a job, its configuration with `changes`, which say where it runs."""
        label, fold = self.next_label, self._started
        self._started += 1
        own = {"cross_validation.fold": fold, "cross_validation.split_id": self.split_id, "output.save_model": False}
        run_dir = self._running[fold] = RunDir(self._folder / f"fold_{fold}")
        return Job(label=label, config=self.config.with_values({**own, **changes}), run_dir=run_dir)

    def hear(self, fold: int, record: Record) -> None:
        """A fold tells something; it may be the reason to stop the trial."""
        value = record.values.get(self._metric) if record.event is Event.EVALUATE else None
        if self.failure or self.stopped:
            self._ask_to_stop()  # again: one that had only just begun to start has not heard it
        elif value is not None and math.isfinite(value):
            self._stop(self._on_epoch(fold, record.epoch, value))

    def finish(self, fold: int, result: TrialResult) -> None:
        """A fold has ended."""
        del self._running[fold]
        self.failure = self.failure or result.failure or _unusable(self._metric, result, self.split_id)
        if self.failure:
            return self._ask_to_stop()
        self.split_id = result.split_id
        if result.status is JobStatus.COMPLETE:
            self._scores[fold] = result.metrics[self._metric]
        if len(self._scores) == self._num_splits:
            self.stopped = ""  # it was over before it heard of it
        elif result.status is JobStatus.STOPPED:
            self._stop(f"fold {fold} was asked to stop")

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        if self.stopped:
            self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        for run_dir in self._running.values():
            with contextlib.suppress(FileNotFoundError):  # not there yet
                run_dir.request_stop()


def _unusable(metric: str, result: TrialResult, split_id: str | None) -> Failure | None:
    """Why the score of a job that did not fail cannot be used."""
    if split_id not in (None, result.split_id):
        return Failure(kind=FailureKind.DATA, message="the data changed between two folds of this trial")
    if result.status is JobStatus.STOPPED:  # perhaps before it was evaluated
        return None
    if metric in result.metrics:
        value = result.metrics[metric]
        return None if math.isfinite(value) else Failure(kind=FailureKind.NON_FINITE, message=f"{metric} is {value}")
    known = ", ".join(result.metrics)
    message = f"the task reports no metric '{metric}' (it reports: {known}); change objective.metric"
    return Failure(kind=FailureKind.CONFIG, message=message)
