"""What happens during a sweep or a single job, as values. The console and the MLflow tracker listen to the same ones.

    SweepStarted
      TrialStarted
        JobStarted  JobProgress ...  JobFinished  Estimate        one job per fold
      TrialFinished
    SweepFinished

A job without a study (``hpo train``, ``hpo train-best``) sends the three job events alone. A Notice may come at any
moment. Events are sent by the orchestrator's process only, in order, from one thread; a listener that works on another
one passes its notices on when it hears the next event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpo.crew import Usage
from hpo.criteria import Names, Score
from hpo.trial import TrialResult
from training.config import JobConfig
from training.errors import Failure
from training.run_dir import Record, RunDir


class TrialState(StrEnum):
    """How a trial ended, in Optuna's words."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobLabel:
    """Which job of which study: ``bert_cv`` trial 3 fold 2. `trial` and `fold` are None outside a sweep."""

    study: str
    trial: int | None = None
    fold: int | None = None

    def __str__(self) -> str:
        return self.study if self.trial is None else f"trial {self.trial} fold {self.fold}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStarted:
    """A sweep begins or continues. `finished_trials` of `total_trials` are there already."""

    study: str
    study_uid: str
    metric: Names
    """Of each objective."""
    direction: Names
    """``maximize`` or ``minimize``, of each objective."""
    num_splits: int
    finished_trials: int
    total_trials: int
    best_value: float | None
    definition: Mapping[str, Any]
    """The study's resolved definition (objective, search space, fixed configuration), nested plain values."""
    told_again: Callable[[Mapping[int, str]], Iterable[tuple[Event, float]]] = field(default=lambda known: ())
    """From the MLflow status of each trial that is known there, by number: what else has happened, and when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialStarted:
    """Hyperparameters were sampled; `params` are keyed by dotted path."""

    number: int
    params: Mapping[str, Any]
    config: JobConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStarted:
    """A training job is about to be launched."""

    label: JobLabel
    config: JobConfig
    run_dir: RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """Rank 0 wrote a record."""

    label: JobLabel
    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFinished:
    """The job is over and its result collected; None when it was interrupted. Its processes may wait for another."""

    label: JobLabel
    result: TrialResult | None
    usage: Usage | None = None
    """What a fold had of the devices, interrupted or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFinished:
    """The trial was told to the study. `value` is the mean over the folds; `reason`: why it failed or was stopped, or
    the constraints that it violates."""

    number: int
    state: TrialState
    value: Score | None
    fold_scores: tuple[Score | None, ...]
    """By fold; None for one that did not run to its end."""
    reason: str = ""
    failure: Failure | None = None
    """Of a trial that failed and is not tried again."""
    failed_fold: int | None = None
    """The fold whose failure it is; None where the trial failed before its first one."""
    num_finished: int | None = None
    """Finished trials of the study, whoever evaluated them; None when it is one more than before."""
    best_value: float | None = None
    """Best value of the study so far, this trial included; None with several objectives."""
    front: tuple[int, ...] = ()
    """With several objectives: the trials that no other dominates, this one included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is left of the search."""

    job_s: float | None
    """Seconds of all jobs to come, as if they ran one after the other; None as long as nothing is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFinished:
    """No more trials will start; `interrupted` is True after Ctrl-C, SIGTERM or an error."""

    interrupted: bool = False
    hurried: bool = False
    """The command is to end now: it was interrupted, or has a deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something the user should know, said once."""

    message: str


OfJob = JobStarted | JobProgress | JobFinished
Event = SweepStarted | TrialStarted | OfJob | Estimate | TrialFinished | SweepFinished | Notice
Listener = Callable[[Event], None]


def is_hurried(event: Event) -> bool:
    """Whether what ends with it was cut short, or must not take longer."""
    return (isinstance(event, SweepFinished) and (event.interrupted or event.hurried)) or (
        isinstance(event, JobFinished) and event.result is None
    )


def is_last(event: Event) -> bool:
    """Whether no other need come after: it ends a sweep, or a job without one."""
    return isinstance(event, SweepFinished) or (isinstance(event, JobFinished) and event.label.trial is None)
