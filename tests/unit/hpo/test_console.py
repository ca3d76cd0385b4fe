"""What people see on stderr while a sweep or a job runs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from hpo.console import LiveConsole, PlainConsole, as_typed, clean, duration, number, open_console, parameters
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    Listener,
    Notice,
    SweepFinished,
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
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


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


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("JPY_PARENT_PID", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pty() -> Iterator[tuple[io.FileIO, TextIO]]:
    """Both ends of a pseudo-terminal: where a person reads, and where we write."""
    master, slave = os.openpty()
    with (
        io.FileIO(master) as reader,
        contextlib.suppress(OSError),
        open(slave, "w", encoding="utf-8") as stream,
    ):
        yield reader, stream


def everything_on(reader: io.FileIO, stream: TextIO) -> str:
    stream.close()
    shown = b""
    # Linux says EIO, not end of file, once a pseudo-terminal has no writer.
    with contextlib.suppress(OSError):
        while chunk := reader.read(65536):
            shown += chunk
    return shown.decode()


# --- phrases


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.12, "4.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1m 00s"),
        (80, "1m 20s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (7500, "2h 05m"),
        (100 * 3600, "100h 00m"),
        (-1, "0.0 s"),
    ],
)
def test_duration_reads_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.839, "0.8390"),
        (-0.25, "-0.2500"),
        (0.0, "0.0000"),
        (3.2e-05, "3.2e-05"),
        (0.0012345, "0.001234"),
        (123456.7, "1.235e+05"),
        (12, "12"),
        (float("nan"), "nan"),
    ],
)
def test_number_keeps_what_distinguishes_scores(value: float | None, text: str) -> None:
    assert number(value) == text


def test_parameters_are_written_as_in_yaml() -> None:
    params = {"optimizer.lr": 0.0012, "training.global_batch_size": 32, "tied": True, "subset": None}
    assert parameters(params) == "optimizer.lr=0.0012 training.global_batch_size=32 tied=true subset=null"


@pytest.mark.parametrize(
    ("dirty", "tidy"),
    [
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        ("\x1bcreset \x07bell\x00", "creset bell"),
        ("one\n    two\r\nthree\u2028four\tfive", "one two three four five"),
        ("trial 3  fold 2/5", "trial 3  fold 2/5"),
        ("abc\u202edcba\u200b", "abcdcba"),
        ("\ud800 naïve 模型", "naïve 模型"),
    ],
)
def test_clean_leaves_one_visible_line(dirty: str, tidy: str) -> None:
    assert clean(dirty) == tidy


# --- plain lines


def test_plain_sweep_is_a_line_per_start_fold_and_verdict() -> None:
    params = {"optimizer.lr": 0.0012}
    assert plain(
        sweep(finished=1, best=0.75),
        trial(3, **params),
        start(label(3, 0)),
        first_record(label(3, 0)),
        record(label(3, 0), RecordEvent.TRAIN, 10, 0, loss=0.7, lr=1e-3),
        record(label(3, 0), RecordEvent.EVALUATE, 20, 1, accuracy=0.8),
        finish(label(3, 0), 0.8421),
        start(label(3, 1)),
        finish(label(3, 1), 0.8),
        tell(3, 0.82105, best=0.82105),
        SweepFinished(),
    ) == [
        "trial 3  started  optimizer.lr=0.0012",
        "trial 3  fold 0 of 2  accuracy 0.8421  4.1 s",
        "trial 3  fold 1 of 2  accuracy 0.8000  4.1 s",
        "trial 3  COMPLETE  accuracy 0.8210 (2 folds)  best 0.8210 (trial 3)  2/3 trials",
    ]


def test_plain_shows_every_objective_and_the_size_of_the_front() -> None:
    several = replace(sweep(), metric=("accuracy", "loss"), direction=("maximize", "minimize"))
    told = replace(tell(4, None), value=(0.8, 0.5), fold_scores=((0.8, 0.5), (0.8, 0.5)), front=(2, 4))
    lines = plain(several, trial(4), start(label(4, 0)), finish(label(4, 0)), told)
    assert lines[1:] == [
        "trial 4  fold 0 of 2  accuracy 0.8000  loss 0.5000  4.1 s",
        "trial 4  COMPLETE  accuracy 0.8000  loss 0.5000 (2 folds)  front of 2  1/3 trials",
    ]


def failed(number: int, fold: int | None, message: str = "ValueError: no") -> TrialFinished:
    failure = Failure(kind=FailureKind.USER_CODE, message=message, rank=1, traceback="Traceback:\n  own.py\x1b[0m, 3")
    told = tell(number, None, state=TrialState.FAIL, reason=f"user_code: {message}")
    return replace(told, failure=failure, failed_fold=fold)


def test_a_failed_trial_has_the_traceback_of_its_rank_and_the_command_that_repeats_it() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream, again="--study bert_cv")
    for event in (sweep(), failed(0, 2, "loss 1"), failed(1, 0, "loss 2"), failed(2, None)):
        console(event)
    first, second, third = (f"trial {number}  FAIL  user_code: " for number in range(3))
    command = "to see it fail again: hpo replay --study bert_cv"
    lines = stream.getvalue().replace(as_typed("hpo "), "hpo ").splitlines()
    assert lines == [
        f"{first}loss 1  1/3 trials",
        "  on rank 1:",
        "  Traceback:",
        "    own.py, 3",
        f"  {command} --trial 0 --fold 2",
        f"{second}loss 2  2/3 trials",  # alike: its traceback is above
        f"  {command} --trial 1 --fold 0",
        f"{third}ValueError: no  3/3 trials",  # before any fold
    ]


def test_plain_failure_says_why_and_keeps_the_best() -> None:
    lines = plain(
        sweep(finished=1, best=0.75),
        trial(4),
        start(label(4, 0)),
        finish(label(4, 0), status=JobStatus.FAILED),
        tell(4, None, best=0.75, state=TrialState.FAIL, reason="oom: CUDA out of memory"),
    )
    assert lines[1:] == [
        "trial 4  fold 0 of 2  failed  oom  4.1 s",
        "trial 4  FAIL  oom: CUDA out of memory  best 0.7500  2/3 trials",
    ]


def test_plain_pruned_trial_shows_the_fold_that_stopped() -> None:
    lines = plain(
        sweep(),
        trial(4),
        start(label(4, 1)),
        finish(label(4, 1), 0.3, status=JobStatus.STOPPED),
        tell(4, 0.3, best=0.75, state=TrialState.PRUNED),
    )
    assert lines[1:] == [
        "trial 4  fold 1 of 2  stopped  accuracy 0.3000  4.1 s",
        "trial 4  PRUNED  accuracy 0.3000 (2 folds)  best 0.7500  1/3 trials",
    ]


def test_plain_fold_that_left_a_checkpoint_to_go_on_from_is_paused_and_not_stopped() -> None:
    paused = finish(label(4, 1), 0.3, status=JobStatus.STOPPED, paused_at=3)
    assert plain(sweep(), trial(4), start(label(4, 1)), paused)[1:] == [
        "trial 4  fold 1 of 2  paused at epoch 3  accuracy 0.3000  4.1 s"
    ]


def test_plain_interrupted_fold_has_no_line() -> None:
    interrupted = JobFinished(label=label(), result=None)
    lines = plain(sweep(), trial(0), start(label()), interrupted, SweepFinished(interrupted=True))
    assert lines == ["trial 0  started"]


def test_plain_verdict_of_a_trial_that_never_started() -> None:
    lines = plain(sweep(), tell(0, None, state=TrialState.FAIL, reason="config: batch size 7"))
    assert lines == ["trial 0  FAIL  config: batch size 7  1/3 trials"]


def test_best_keeps_its_trial_until_another_is_better() -> None:
    lines = plain(sweep(), trial(0), tell(0, 0.8, best=0.8), trial(1), tell(1, 0.7, best=0.8))
    assert lines[-1] == "trial 1  COMPLETE  accuracy 0.7000 (2 folds)  best 0.8000 (trial 0)  2/3 trials"


def test_best_of_another_worker_names_no_trial_of_ours() -> None:
    lines = plain(sweep(), trial(0), tell(0, 0.8, best=0.8), trial(1), tell(1, 0.7, best=0.9))
    assert lines[-1] == "trial 1  COMPLETE  accuracy 0.7000 (2 folds)  best 0.9000  2/3 trials"


def test_notices_are_said_once() -> None:
    assert plain(Notice(message="no GPU"), Notice(message="no GPU"), Notice(message="slow disk")) == [
        "note: no GPU",
        "note: slow disk",
    ]


def test_plain_job_without_a_study_is_a_line_per_epoch() -> None:
    job = label(None, None)
    assert plain(
        start(job),
        first_record(job),
        record(job, RecordEvent.TRAIN, 20, 0, loss=0.7, lr=1e-3),
        record(job, RecordEvent.EVALUATE, 20, 1, accuracy=0.8, loss=0.61),
        record(job, RecordEvent.EVALUATE, 40, 2, accuracy=0.9, loss=0.5),
        finish(job),
    ) == [
        "bert_cv  epoch 1/3  step 20  train loss 0.7000  accuracy 0.8000  loss 0.6100",
        "bert_cv  epoch 2/3  step 40  train loss 0.7000  accuracy 0.9000  loss 0.5000",
    ]


def test_plain_text_cannot_forge_a_line_or_an_escape() -> None:
    reason = "boom\ntrial 0  COMPLETE\x1b[2J"
    lines = plain(sweep(), trial(0, name="a\r\x1b[31mb"), tell(0, None, state=TrialState.FAIL, reason=reason))
    assert lines == ["trial 0  started  name=a b", "trial 0  FAIL  boom trial 0  COMPLETE  1/3 trials"]


def test_plain_lines_are_flushed_one_by_one() -> None:
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    stream = Buffered()
    with open_console(stream) as console:
        console(Notice(message="one"))
        assert stream.flushed == "note: one\n"
        console(Notice(message="two"))
        assert stream.flushed == "note: one\nnote: two\n"


# --- time left


def fold_of(seconds: float, which: JobLabel, status: JobStatus = JobStatus.COMPLETE) -> list[Event | Pass]:
    return [start(which), Pass(seconds), finish(which, status=status)]


def eta_of_trial_0(*folds: list[Event | Pass]) -> str:
    """How the line of trial 0 ends; two more trials of two folds are to come."""
    script = [item for fold in folds for item in fold]
    return plain(sweep(), trial(0), *script, tell(0, 0.8, best=0.8))[-1].partition("1/3 trials")[2]


def test_eta_is_mean_fold_time_times_remaining_folds() -> None:
    assert eta_of_trial_0(fold_of(10, label(0, 0)), fold_of(30, label(0, 1))) == "  ETA 1m 20s"


def test_eta_is_unknown_before_a_fold_is_complete() -> None:
    failed, stopped = JobStatus.FAILED, JobStatus.STOPPED
    assert eta_of_trial_0(fold_of(10, label(0, 0), failed), fold_of(5, label(0, 1), stopped)) == ""


def test_eta_ignores_folds_that_ended_early() -> None:
    stopped = fold_of(1, label(0, 1), JobStatus.STOPPED)
    assert eta_of_trial_0(fold_of(10, label(0, 0)), stopped) == "  ETA 40.0 s"


def test_a_trial_that_is_queued_again_is_not_counted() -> None:
    interrupted = replace(tell(0, None, state=TrialState.FAIL), num_finished=0)
    assert "0/3 trials" in Screen().show(sweep(), trial(0), interrupted)[-1]


def test_eta_counts_down_between_folds() -> None:
    lines = Screen().show(sweep(), trial(0), *fold_of(10, label(0)), start(label(0, 1)), Pass(4))
    assert "0/3 trials  ETA 46.0 s  elapsed 14.0 s" in lines[-3]


# --- the live display


def test_live_shows_where_the_sweep_the_trial_and_the_fold_are() -> None:
    screen = Screen()
    *_, bar, running, fold = screen.show(
        sweep(finished=1, best=0.9),
        trial(3, lr=0.01),
        start(label(3, 0)),
        finish(label(3, 0), 0.8421),
        start(label(3, 1)),
        first_record(label(3, 1)),
        record(label(3, 1), RecordEvent.EVALUATE, 20, 1, accuracy=0.7, loss=0.9),
        record(label(3, 1), RecordEvent.TRAIN, 30, 1, loss=0.55, lr=1e-3),
    )
    assert bar.startswith("━")
    assert bar.endswith("  best 0.9000  1/3 trials  elapsed 0.0 s")
    assert running == "trial 3  1/2 folds  accuracy 0.8421  lr=0.01"
    assert fold == "  fold 1 of 2  epoch 2/3  step 30  train loss 0.5500  accuracy 0.7000"


def test_live_fold_before_its_first_record_is_starting() -> None:
    assert Screen().show(sweep(), trial(0), start(label()))[-1] == "  fold 0 of 2  starting"


def test_live_finished_trial_scrolls_above_and_leaves_the_display() -> None:
    lines = Screen().show(
        sweep(),
        trial(0, lr=0.01),
        start(label()),
        finish(label()),
        tell(0, 0.8, best=0.8),
        trial(1),
        SweepFinished(),
    )
    assert "trial 0  COMPLETE  accuracy 0.8000 (2 folds)  lr=0.01" in lines
    assert "best 0.8000 (trial 0)  1/3 trials" in lines[-1]


def test_live_shows_every_trial_that_runs() -> None:
    lines = Screen().show(sweep(), trial(0), trial(1), start(label(1)), start(label(0)))
    assert lines[-4:] == [
        "trial 0  0/2 folds",
        "  fold 0 of 2  starting",
        "trial 1  0/2 folds",
        "  fold 0 of 2  starting",
    ]


def test_live_elapsed_follows_the_clock() -> None:
    assert Screen().show(sweep(), Pass(3725))[-1].endswith("0/3 trials  elapsed 1h 02m")


def test_live_rows_are_cut_at_the_edge() -> None:
    lines = Screen(width=40).show(sweep(), trial(0, note="x" * 100), start(label()))
    assert lines[-2].startswith("trial 0  0/2 folds  note=xxx")
    assert lines[-2].endswith("…")
    assert all(len(line) <= 40 for line in lines)


def test_live_job_without_a_study_shows_all_metrics() -> None:
    job = label(None, None)
    bar, line = Screen().show(
        start(job),
        first_record(job),
        record(job, RecordEvent.TRAIN, 20, 0, loss=0.7, lr=1e-3),
        record(job, RecordEvent.EVALUATE, 20, 1, accuracy=0.8, loss=0.61),
        finish(job),
    )[-2:]
    assert bar.endswith("  bert_cv  elapsed 0.0 s")
    assert line == "epoch 1/3  step 20  train loss 0.7000  accuracy 0.8000  loss 0.6100"


def test_live_notices_are_said_once() -> None:
    lines = Screen().show(sweep(), Notice(message="no GPU"), Notice(message="no GPU"))
    assert [line for line in lines if not line.startswith("━")] == ["note: no GPU"]


def test_live_text_is_neither_markup_nor_escape() -> None:
    screen = Screen()
    evil = "[red]x[/red][/] :bomb: \x1b]0;pwned\x07\x1b[2J\x9b2J"
    lines = screen.show(
        Notice(message=evil),
        sweep(),
        trial(0, evil=evil),
        tell(0, None, state=TrialState.FAIL, reason=evil),
        trial(1, evil=evil),
    )
    assert sum("[red]x[/red][/] :bomb:" in line for line in lines) >= 3
    for forbidden in ("pwned", "\x07", "\x1b[2J", "\x9b"):
        assert forbidden not in screen.raw.getvalue()


# --- choosing, and leaving the terminal as it was


def test_a_terminal_gets_the_live_display(pty: tuple[io.FileIO, TextIO]) -> None:
    assert isinstance(open_console(pty[1]), LiveConsole)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1")])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    name: str, value: str, pty: tuple[io.FileIO, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert isinstance(open_console(pty[1]), PlainConsole)


def test_a_log_file_gets_plain_lines_even_when_color_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_console(io.StringIO()), PlainConsole)


def test_talk_goes_to_the_stderr_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    with open_console() as console:
        console(Notice(message="hello"))
    assert capsys.readouterr() == ("", "note: hello\n")


def test_ctrl_c_restores_the_terminal(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), open_console(stream) as console:
        console(sweep())
        assert sys.stdout is before[0]
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
    shown = everything_on(reader, stream)
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "0/3 trials" in shown


def test_what_others_write_to_stderr_appears_above_as_it_is(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    with open_console(stream) as console:
        console(sweep())
        sys.stderr.write("[/not markup]")
        sys.stderr.flush()
    assert "[/not markup]" in everything_on(reader, stream)


def test_a_closed_pipe_does_not_end_the_sweep() -> None:
    reader, writer = os.pipe()
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closing it raises, too
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("really closed", file=stream, flush=True)
    with open_console(stream) as console:
        console(Notice(message="anyone?"))
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_terminal_that_hung_up_does_not_end_the_sweep(pty: tuple[io.FileIO, TextIO]) -> None:
    reader, stream = pty
    with open_console(stream) as console:
        console(sweep())
        reader.close()
        with pytest.raises(OSError, match="Input/output error"):
            print("really gone", file=stream, flush=True)
        console(Notice(message="anyone?"))
