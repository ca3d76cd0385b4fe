"""Shows a sweep, or a single job, while it runs: a live display on a terminal, plain lines anywhere else.

    with open_console() as console:
        console(event)                # for every hpo.events.Event, in order

Everything goes to stderr, since stdout is data. Names, parameters and errors come from users and from
training code: every line is stripped of control characters and never read as markup. A reader that goes
away (a closed pipe, a terminal that hung up) does not end the sweep. Folds count from 0, as they do on disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo import events
from hpo.criteria import as_tuple
from hpo.masking import ESCAPE_SEQUENCE
from hpo.trial import JobStatus
from training import run_dir
from training.errors import Failure, FailureKind

Clock = Callable[[], float]

USER_MISTAKES = (FailureKind.CONFIG, FailureKind.DATA)
"""Their message says what to do; a traceback would hide it."""

_BREAK = re.compile(r"[^\S ]\s*")


def open_console(
    stream: TextIO | None = None, clock: Clock = time.monotonic, *, again: str = ""
) -> contextlib.AbstractContextManager[events.Listener]:
    """Shows events on `stream` (stderr). Leaving the block, by Ctrl-C too, restores the terminal.

    `again` are the options that lead to the study once more, for the command that repeats a failure.
    """
    lasting = cast(TextIO, _LastingStream(stream or sys.stderr or open(os.devnull, "w")))
    # No markup: while it is live, rich also prints here what other code writes to stderr.
    console = Console(file=lasting, markup=False, emoji=False, highlight=False)
    # "!hpo sweep" in a notebook gets a pseudo-terminal, but the cell below it cannot move its cursor up.
    is_notebook = "JPY_PARENT_PID" in os.environ
    # isatty as well, since rich takes any file for a terminal when FORCE_COLOR is set (many CI systems do).
    if lasting.isatty() and console.is_interactive and not is_notebook:
        return LiveConsole(console, clock, again)
    return PlainConsole(lasting, clock, again)


def duration(seconds: float) -> str:
    """``4.1 s``, ``1m 20s``, ``2h 05m``."""
    if seconds < 59.95:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60}m {round(seconds) % 60:02d}s"
    return f"{round(seconds / 60) // 60}h {round(seconds / 60) % 60:02d}m"


def number(value: float | None) -> str:
    """``0.8390``, ``3.2e-05``, ``12``, ``1290`` where it is whole; ``-`` when there is none."""
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    if abs(value) >= 100 and value.is_integer():
        return f"{value:.0f}"
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def counted(count: int, what: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count} {what}{'s' * (count != 1)}"


def parameters(params: Mapping[str, Any]) -> str:
    """``optimizer.lr=0.0012 training.global_batch_size=32``, values as one would write them in YAML."""
    return clean(" ".join(f"{name}={_yaml(value)}" for name, value in params.items()))


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clean(text: str) -> str:
    """`text` on one line, without escape sequences, control characters and other invisible ones."""
    line = _BREAK.sub(" ", ESCAPE_SEQUENCE.sub("", text))
    return "".join(filter(str.isprintable, line)).strip()


def failure_text(failure: Failure) -> str:
    """A failure, safe to print; with the traceback of the first failing rank where that helps the user."""
    message = "\n".join(clean(line) for line in failure.message.splitlines())
    traceback = _traceback(failure)
    rank = f" on rank {failure.rank}" if traceback and failure.rank is not None else ""
    return "\n".join([f"{failure.kind}{rank}: {message}", *traceback])


def _traceback(failure: Failure) -> list[str]:
    """Of the first failing rank, line by line; nothing where the message says what to do."""
    if failure.kind in (*USER_MISTAKES, FailureKind.INFRASTRUCTURE, FailureKind.SHM_FULL):
        return []
    return [textwrap.indent(clean(line), _indent(line)) for line in failure.traceback.splitlines()]


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))


def replay_command(again: str, trial: int, fold: int) -> str:
    """What trains a recorded fold once more; `again` are the options that lead to its study."""
    return as_typed(f"hpo replay {again} --trial {trial} --fold {fold}")


def as_typed(command: str) -> str:
    """`command` as the user's shell finds it: with the path of this ``hpo`` where that is not on it."""
    if not command.startswith("hpo ") or shutil.which("hpo") is not None:
        return command
    is_module = os.path.basename(sys.argv[0]) == "__main__.py"
    this = f"{shlex.quote(sys.executable)} -m hpo" if is_module else shlex.quote(os.path.relpath(sys.argv[0]))
    return this + command.removeprefix("hpo")


def _join(*parts: str) -> str:
    return clean("  ".join(part for part in parts if part))


@dataclass(slots=True)
class _Job:
    """A running job, as far as its records tell."""

    epochs: int = 0
    num_steps: int = 0
    epoch: int = 0
    """The epoch at work, from 1; after an evaluation, the one just finished."""
    step: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def hear(self, record: run_dir.Record) -> None:
        values, finished = record.values, record.epoch
        match record.event:
            case run_dir.Event.START:
                self.epochs = int(values["epochs"])
                self.num_steps = self.epochs * int(values["steps_per_epoch"])
            case run_dir.Event.TRAIN:
                self.loss = values["loss"]
            case run_dir.Event.EVALUATE:
                self.metrics = values
        self.step = record.step
        self.epoch = finished if record.event is run_dir.Event.EVALUATE else min(finished + 1, self.epochs)

    def describe(self, metrics: tuple[str, ...] | None) -> str:
        """Epoch, step, training loss and metrics; of these only `metrics`, unless that is None."""
        place = (f"epoch {self.epoch}/{self.epochs}", f"step {self.step}") if self.epochs else ("starting",)
        loss = "" if self.loss is None else f"train loss {number(self.loss)}"
        shown = (
            f"{name} {number(value)}" for name, value in self.metrics.items() if metrics is None or name in metrics
        )
        return _join(*place, loss, *shown)


@dataclass(slots=True)
class _Trial:
    params: str
    scores: list[str] = field(default_factory=list)
    """Of each fold that ended."""


class _Board:
    """What the events add up to, and the phrases that both consoles use."""

    def __init__(self, clock: Clock, again: str) -> None:
        self.clock, self._again = clock, again
        self.started = clock()
        self.sweep: events.SweepStarted | None = None
        self.metrics: tuple[str, ...] = ()
        self.num_splits = 0
        self.num_finished = 0
        self.best_value: float | None = None
        self.best_trial: int | None = None
        self.front: tuple[int, ...] = ()
        self.trials: dict[int, _Trial] = {}
        self.jobs: dict[events.JobLabel, _Job] = {}
        self._at_once = 1
        """Most jobs that ran side by side."""
        self._deadline: float | None = None
        self._notices: set[str] = set()
        self._explained: set[str] = set()

    def hear(self, event: events.Event) -> None:
        match event:
            case events.SweepStarted():
                self.sweep, self.metrics, self.num_splits = event, as_tuple(event.metric), event.num_splits
                self.num_finished, self.best_value = event.finished_trials, event.best_value
            case events.TrialStarted(number=trial, params=params):
                self.trials[trial] = _Trial(parameters(params))
            case events.JobStarted(label=label):
                self.jobs[label] = _Job()
                self._at_once = max(self._at_once, len(self.jobs))
            case events.JobProgress(label=label, record=record):
                self.jobs[label].hear(record)
            case events.JobFinished(label=events.JobLabel(trial=int(trial))):
                self._finish_fold(event, self.trials[trial])
            case events.Estimate(job_s=job_s):
                self._deadline = None if job_s is None else self.clock() + job_s / self._at_once
            case events.TrialFinished():
                self._finish_trial(event)
            case events.SweepFinished():
                self.trials.clear()

    def _finish_fold(self, event: events.JobFinished, trial: _Trial) -> None:
        del self.jobs[event.label]
        if event.result is not None and event.result.status is JobStatus.COMPLETE:
            trial.scores.append(self.values(event.result.metrics))

    def _finish_trial(self, event: events.TrialFinished) -> None:
        self.num_finished = self.num_finished + 1 if event.num_finished is None else event.num_finished
        self.trials.pop(event.number, None)
        if event.best_value != self.best_value:
            # The best may also come from another worker of the same study; then its trial is not known here.
            self.best_trial = event.number if event.value == event.best_value else None
        self.best_value, self.front = event.best_value, event.front

    def standing(self) -> str:
        """``best 0.8390 (trial 3)  3/6 trials  ETA 1m 20s``, as much of it as is known."""
        if self.sweep is None:
            return ""
        best = "" if self.best_value is None else f"best {number(self.best_value)}"
        if self.best_trial is not None:
            best += f" (trial {self.best_trial})"
        left = 0.0 if self._deadline is None else self._deadline - self.clock()
        best = f"front of {len(self.front)}" if self.front else best
        eta = f"ETA {duration(left)}" if left > 0 else ""
        return _join(best, f"{self.num_finished}/{self.sweep.total_trials} trials", eta)

    def fold(self, label: events.JobLabel) -> str:
        return f"fold {label.fold} of {self.num_splits}"

    def verdict(self, event: events.TrialFinished) -> str:
        """``trial 3  COMPLETE  accuracy 0.8390 (5 folds)``, with every objective."""
        num_scored = sum(score is not None for score in event.fold_scores)
        folds = f"{num_scored} fold{'s' * (num_scored != 1)}"
        values = {} if event.value is None else dict(zip(self.metrics, as_tuple(event.value), strict=False))
        score = f"{_join(*self.named(values))} ({folds})" if values else ""
        return _join(f"trial {event.number}", event.state, score, event.reason)

    def explanation(self, event: events.TrialFinished) -> list[str]:
        """Of a trial that failed in a fold: the traceback, unless one that failed alike had it, and how to see it fail
        again."""
        if event.failure is None or event.failed_fold is None:
            return []
        alike, traceback = re.sub(r"\d+", "", event.reason), _traceback(event.failure)
        lines = [] if alike in self._explained else traceback
        self._explained.add(alike)
        if lines and event.failure.rank is not None:
            lines = [f"on rank {event.failure.rank}:", *lines]
        if self._again:
            lines = [*lines, f"to see it fail again: {replay_command(self._again, event.number, event.failed_fold)}"]
        return [f"  {line}" for line in lines]

    def named(self, metrics: Mapping[str, float]) -> list[str]:
        """``accuracy 0.8390``, for each objective."""
        return [f"{name} {number(metrics.get(name))}" for name in self.metrics]

    def values(self, metrics: Mapping[str, float]) -> str:
        """``0.8390``, or ``0.8390/1290`` with several objectives."""
        return "/".join(number(metrics.get(name)) for name in self.metrics)

    def note(self, event: events.Notice) -> str:
        """The line of a notice; empty when it was said before."""
        line = _join(f"note: {event.message}")
        is_new = line not in self._notices
        self._notices.add(line)
        return line if is_new else ""


class PlainConsole:
    """At most one line an event, but for what failed; for log files and pipes."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, again: str = "") -> None:
        self._stream, self._board = stream, _Board(clock, again)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def __call__(self, event: events.Event) -> None:
        self._board.hear(event)
        if line := self._line(event):
            self._stream.write(line + "\n")
            self._stream.flush()

    def _line(self, event: events.Event) -> str:
        match event:
            case events.TrialStarted():
                return _join(f"trial {event.number}", "started", parameters(event.params))
            case events.JobProgress(label=events.JobLabel(trial=None) as label, record=record):
                is_epoch = record.event is run_dir.Event.EVALUATE
                return _join(str(label), self._board.jobs[label].describe(None)) if is_epoch else ""
            case events.JobFinished(label=events.JobLabel(trial=int())):
                return self._fold_line(event)
            case events.TrialFinished():
                verdict = _join(self._board.verdict(event), self._board.standing())
                return "\n".join([verdict, *self._board.explanation(event)])
            case events.Notice():
                return self._board.note(event)
        return ""

    def _fold_line(self, event: events.JobFinished) -> str:
        result, fold = event.result, self._board.fold(event.label)
        if result is None:
            return ""
        status: str = "" if result.status is JobStatus.COMPLETE else result.status
        status = status if result.paused_at is None else f"paused at epoch {result.paused_at}"
        score = result.failure.kind if result.failure else _join(*self._board.named(result.metrics))
        return _join(f"trial {event.label.trial}", fold, status, score, duration(result.duration_s))


class LiveConsole:
    """A display at the bottom of the terminal; finished trials and notices scroll away above it."""

    def __init__(self, console: Console, clock: Clock = time.monotonic, again: str = "") -> None:
        self._console, self._board = console, _Board(clock, again)
        # Its thread draws four times a second. It leaves stdout alone: rich would send that to stderr, too.
        self._live = Live(console=console, get_renderable=self._view, redirect_stdout=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: events.Event) -> None:
        above = self._above(event)
        self._board.hear(event)
        if above:
            self._console.print(above)

    def _above(self, event: events.Event) -> Text | None:
        match event:
            case events.TrialFinished(number=trial, value=value, state=state):
                is_best = trial in event.front or (value is not None and value == event.best_value)
                style = "green" if is_best else {"FAIL": "red", "PRUNED": "dim"}.get(state, "")
                params = self._board.trials[trial].params if trial in self._board.trials else ""
                verdict = _join(self._board.verdict(event), params)
                return Text("\n".join([verdict, *self._board.explanation(event)]), style)
            case events.Notice():
                return Text(self._board.note(event), "yellow")
        return None

    def _view(self) -> RenderableType:
        return Group(*self._rows())

    def _rows(self) -> Iterator[RenderableType]:
        board = self._board
        # Copies, since events come from another thread than the one that draws.
        trials, jobs = list(board.trials.items()), list(board.jobs.items())
        if board.sweep:
            yield self._bar(board.num_finished, board.sweep.total_trials, board.standing())
        for trial_number, trial in trials:
            yield self._trial_row(trial_number, trial)
            for label, job in jobs:
                if label.trial == trial_number:
                    yield _row(f"  {_join(board.fold(label), job.describe(board.metrics))}")
        for label, job in jobs:
            if label.trial is None:
                yield self._bar(job.step, job.num_steps or None, _join(str(label)))
                yield Text(job.describe(None))

    def _trial_row(self, trial_number: int, trial: _Trial) -> Text:
        folds = f"{len(trial.scores)}/{self._board.num_splits} folds"
        scores = " ".join(["/".join(self._board.metrics), *trial.scores]) if trial.scores else ""
        return _row(_join(f"trial {trial_number}", folds, scores, trial.params))

    def _bar(self, done: int, total: int | None, caption: str) -> Table:
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1, min_width=8)
        row.add_column(no_wrap=True)
        elapsed = f"elapsed {duration(self._board.clock() - self._board.started)}"
        row.add_row(ProgressBar(total=total, completed=done), Text(_join(caption, elapsed)))
        return row


def _row(line: str) -> Text:
    # Cut at the edge instead of wrapped, so that the display keeps its height.
    return Text(line, no_wrap=True, overflow="ellipsis")


class _LastingStream:
    """A text stream that outlives its reader: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()
