"""The folds of one trial, each through ``run_single_trial``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpo.events import JobFinished, JobLabel, JobProgress, JobStarted, Listener, Notice
from hpo.trial import JobStatus, TrialResult, run_single_trial
from training.config import Failure, FailureKind, JobConfig
from training.run_dir import Event, Record, RunDir

OnEpoch = Callable[[int, int, float], bool]
"""Hears (fold, finished epochs, objective value); returns True to stop the trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldScores:
    """What the folds of a trial came to: all `scores`, or fewer and a `failure`, or fewer because it was stopped."""

    scores: tuple[float, ...]
    failure: Failure | None = None
    stopped: bool = False

    @property
    def mean(self) -> float:
        """The trial's value."""
        return sum(self.scores) / len(self.scores)


def evaluate_folds(
    config: JobConfig, folder: Path, label: JobLabel, metric: str, on_epoch: OnEpoch, listen: Listener
) -> FoldScores:
    """Train and score every fold of `config`, in order, until one fails or is stopped.

    The same `config` gives the same folds in every trial. Exceptions (Ctrl-C) pass through, after the job is gone.
    """
    scores: list[float] = []
    last = config.cross_validation.num_splits - 1
    for fold in range(last + 1):
        job = config.with_values({"cross_validation.fold": fold, "output.save_model": False})
        fold_label = JobLabel(study=label.study, trial=label.trial, fold=fold)

        verdict = _Verdict(fold, metric, on_epoch)
        result = run_job(job, RunDir(folder / f"fold_{fold}"), fold_label, verdict, listen)
        failure = result.failure or _unusable(metric, result)
        if failure is None and verdict.stop and not (fold == last and result.status is JobStatus.COMPLETE):
            return FoldScores(scores=tuple(scores), stopped=True)
        if failure is not None:
            return FoldScores(scores=tuple(scores), failure=failure)
        scores.append(result.metrics[metric])
    return FoldScores(scores=tuple(scores))


class _Verdict:
    """Whether a fold was told to stop. It holds also when the fold was over before it heard of it."""

    def __init__(self, fold: int, metric: str, on_epoch: OnEpoch) -> None:
        self._fold, self._metric, self._on_epoch = fold, metric, on_epoch
        self.stop = False

    def __call__(self, record: Record) -> bool:
        value = record.values.get(self._metric) if record.event is Event.EVALUATE else None
        if not self.stop and value is not None and math.isfinite(value):
            self.stop = self._on_epoch(self._fold, record.epoch, value)
        return self.stop


def run_job(
    config: JobConfig,
    run_dir: RunDir,
    label: JobLabel,
    on_record: Callable[[Record], bool],
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
