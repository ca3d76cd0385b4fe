"""Sweeps and jobs, played to a log file or to a terminal in memory."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hpo.console import LiveConsole, PlainConsole
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    Listener,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Event as RecordEvent
from training.run_dir import Record, RunDir

CONFIG, RUN_DIR = JobConfig(), RunDir(Path("run"))


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sweep(*, finished: int = 0, total: int = 3, splits: int = 2, best: float | None = None) -> SweepStarted:
    return SweepStarted(
        study="bert_cv",
        study_uid="uid",
        metric="accuracy",
        direction="maximize",
        num_splits=splits,
        finished_trials=finished,
        total_trials=total,
        best_value=best,
        definition={},
    )


def trial(number: int, **params: object) -> TrialStarted:
    return TrialStarted(number=number, params=params, config=CONFIG)


def label(trial: int | None = 0, fold: int | None = 0) -> JobLabel:
    return JobLabel(study="bert_cv", trial=trial, fold=fold)


def start(which: JobLabel) -> JobStarted:
    return JobStarted(label=which, config=CONFIG, run_dir=RUN_DIR)


def record(which: JobLabel, event: RecordEvent, step: int, epoch: int, **values: float) -> JobProgress:
    return JobProgress(label=which, record=Record(event=event, step=step, epoch=epoch, time=0.0, values=values))


def first_record(which: JobLabel, *, epochs: float = 3.0) -> JobProgress:
    return record(which, RecordEvent.START, 0, 0, world_size=1.0, epochs=epochs, steps_per_epoch=20.0)


def finish(
    which: JobLabel, score: float = 0.8, *, status: JobStatus = JobStatus.COMPLETE, paused_at: int | None = None
) -> JobFinished:
    failure = Failure(kind=FailureKind.OOM, message="no memory") if status is JobStatus.FAILED else None
    result = TrialResult(
        status=status,
        metrics={} if failure else {"accuracy": score, "loss": 0.5},
        failure=failure,
        duration_s=4.12,
        world_size=1,
        run_dir=RUN_DIR,
        paused_at=paused_at,
    )
    return JobFinished(label=which, result=result)


def tell(
    number: int,
    value: float | None,
    *,
    best: float | None = None,
    state: TrialState = TrialState.COMPLETE,
    reason: str = "",
) -> TrialFinished:
    scores = () if value is None else (value, value)
    return TrialFinished(number=number, state=state, value=value, fold_scores=scores, reason=reason, best_value=best)


@dataclass(frozen=True)
class Pass:
    """So much time between two events."""

    seconds: float


def play(script: Iterable[Event | Pass], console: Listener, clock: Clock) -> None:
    for item in script:
        if isinstance(item, Pass):
            clock.now += item.seconds
        else:
            console(item)


def plain(*script: Event | Pass) -> list[str]:
    """The lines in a log file."""
    stream, clock = io.StringIO(), Clock()
    with PlainConsole(stream, clock) as console:
        play(script, console, clock)
    return stream.getvalue().splitlines()


class Screen:
    """A wide terminal in memory."""

    def __init__(self, width: int = 100) -> None:
        self.raw = io.StringIO()
        self._console = Console(file=self.raw, force_terminal=True, width=width, record=True, markup=False)

    def show(self, *script: Event | Pass) -> list[str]:
        """The lines on it after `script`, the last frame included (drawn when the console closes)."""
        clock = Clock()
        with LiveConsole(self._console, clock) as console:
            play(script, console, clock)
        return [line.rstrip() for line in self._console.export_text().splitlines()]
