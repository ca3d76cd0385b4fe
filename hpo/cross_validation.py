"""The folds of one trial, each through ``run_single_trial``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hpo.events import JobFinished, JobLabel, JobProgress, JobStarted, Listener, Notice
from hpo.trial import JobStatus, OnRecord, TrialResult, run_single_trial
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Event, Record, RunDir

OnEpoch = Callable[[int, int, float], str]
"""Hears (fold, finished epochs, objective value); returns why the trial is to stop, or "" to let it go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldScores:
    """What the folds of a trial came to: all `scores`, or fewer and a `failure`, or fewer because it was stopped."""

    scores: tuple[float, ...]
    """Of the folds that ran to their end."""
    failure: Failure | None = None
    stopped: str = ""
    """Why it was stopped."""
    split_id: str | None = None
    """Identity of the samples and folds, once a fold was trained."""

    @property
    def mean(self) -> float:
        """The trial's value."""
        return fmean(self.scores)


def evaluate_folds(
    config: JobConfig, folder: Path, label: JobLabel, metric: str, on_epoch: OnEpoch, listen: Listener
) -> FoldScores:
    """Train and score every fold of `config`, in order, until one fails or is stopped.

    The same `config` gives the same folds in every trial. Exceptions (Ctrl-C) pass through, after the job is gone.
    """
    scores: list[float] = []
    split_id = config.cross_validation.split_id
    num_splits = config.cross_validation.num_splits
    for fold in range(num_splits):
        changes = {"cross_validation.fold": fold, "cross_validation.split_id": split_id, "output.save_model": False}
        fold_label = JobLabel(study=label.study, trial=label.trial, fold=fold)
        verdict = _Verdict(fold, metric, on_epoch)
        job = config.with_values(changes)
        result = run_job(job, RunDir(folder / f"fold_{fold}"), fold_label, verdict, listen)
        failure = result.failure or _unusable(metric, result)
        if failure is not None:
            return FoldScores(scores=tuple(scores), failure=failure, split_id=split_id)
        split_id = result.split_id
        if result.status is JobStatus.COMPLETE:
            scores.append(result.metrics[metric])
        if result.status is JobStatus.STOPPED or (verdict.reason and len(scores) < num_splits):
            reason = verdict.reason or f"fold {fold} was asked to stop"
            return FoldScores(scores=tuple(scores), stopped=reason, split_id=split_id)
    return FoldScores(scores=tuple(scores), split_id=split_id)


class _Verdict:
    """Why a fold was told to stop. It holds also when the fold was over before it heard of it."""

    def __init__(self, fold: int, metric: str, on_epoch: OnEpoch) -> None:
        self._fold, self._metric, self._on_epoch = fold, metric, on_epoch
        self.reason = ""

    def __call__(self, record: Record) -> bool:
        value = record.values.get(self._metric) if record.event is Event.EVALUATE else None
        if not self.reason and value is not None and math.isfinite(value):
            self.reason = self._on_epoch(self._fold, record.epoch, value)
        return bool(self.reason)


def run_job(
    config: JobConfig,
    run_dir: RunDir,
    label: JobLabel,
    on_record: OnRecord,
    listen: Listener,
    *,
    resume: bool = False,
) -> TrialResult:
    """``run_single_trial`` with its events sent to `listen`, also when it is interrupted."""
    result: TrialResult | None = None

    def tell(record: Record) -> bool:
        listen(JobProgress(label=label, record=record))
        return on_record(record)

    listen(JobStarted(label=label, config=config, run_dir=run_dir))
    try:
        result = run_single_trial(
            config, run_dir, on_record=tell, on_notice=lambda text: listen(Notice(message=text)), resume=resume
        )
    finally:
        listen(JobFinished(label=label, result=result))
    return result


def _unusable(metric: str, result: TrialResult) -> Failure | None:
    if metric in result.metrics:
        value = result.metrics[metric]
        return None if math.isfinite(value) else Failure(kind=FailureKind.NON_FINITE, message=f"{metric} is {value}")
    known = ", ".join(result.metrics)
    message = f"the task reports no metric '{metric}' (it reports: {known}); change objective.metric"
    return Failure(kind=FailureKind.CONFIG, message=message)
