"""The sender of events never waits for who writes them, but for a bounded time at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo import background
from hpo.background import Background
from hpo.events import Event, JobFinished, JobLabel, JobProgress, Notice, SweepFinished
from hpo.mlflow_runs import Model
from training.run_dir import Event as RecordEvent
from training.run_dir import Record

REPOSITORY = Path(__file__).parents[3]
ALONE = JobLabel(study="train")
END = SweepFinished()


class FakeWriter:
    """Writes into a list, when it is let to."""

    where = "somewhere"

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.heard, self.written = say, list[Event](), list[Event]()
        self.is_writing, self.may_open, self.may_write = threading.Event(), threading.Event(), threading.Event()
        self.may_open.set()
        self.may_write.set()
        self.threads, self.num_refusals = set[int](), 0
        self.on_write: Callable[[], None] = lambda: None
        self.on_look: Callable[[], int] = lambda: 0

    def open(self) -> None:
        self.threads.add(threading.get_ident())
        self.may_open.wait()

    def hear(self, event: Event, at: float) -> None:
        self.threads.add(threading.get_ident())
        self.heard.append(event)

    def write(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_writing.set()
        self.on_write()
        self.may_write.wait()
        if self.num_refusals > 0:
            self.num_refusals -= 1
            return
        self.written += self.heard[len(self.written) :]

    @property
    def has_unwritten(self) -> bool:
        return len(self.written) < len(self.heard)

    @property
    def num_steps(self) -> int:
        return self.on_look()

    def log_model(self, label: JobLabel, model: Model) -> str:
        self.threads.add(threading.get_ident())
        self.say("a model")
        return f"models:/{model.name}/{len(self.written)}"


class Sender:
    """A background listener over a fake writer, and what was noticed."""

    def __init__(self) -> None:
        self.notices, self.noticed_by = list[str](), set[int]()
        self.writers = list[FakeWriter]()
        self.listen = Background(self._make, self._notice)

    @property
    def writer(self) -> FakeWriter:
        return self.writers[0]

    def _make(self, say: Callable[[str], None]) -> FakeWriter:
        self.writers.append(FakeWriter(say))
        return self.writer

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        self.noticed_by.add(threading.get_ident())


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    monkeypatch.setattr(background, "WRITE_INTERVAL_S", 0.001)
    made = Sender()
    yield made
    made.writer.may_open.set()
    made.writer.may_write.set()


def hello(number: int = 0) -> Event:
    return Notice(message=f"hello {number}")


def progress(step: int) -> Event:
    record = Record(event=RecordEvent.TRAIN, step=step, epoch=0, time=0.0, values={"loss": 0.5})
    return JobProgress(label=ALONE, record=record)


def test_events_are_taken_while_a_write_hangs_and_written_at_the_end(sender: Sender) -> None:
    sender.writer.may_write.clear()
    sender.listen(hello())
    assert sender.writer.is_writing.wait(60)
    many = [hello(number) for number in range(1000)]
    for event in many:
        sender.listen(event)  # would hang here
    assert sender.writer.written == []
    sender.writer.may_write.set()
    sender.listen(END)
    assert sender.writer.written == [hello(), *many, END]
    assert sender.notices == []


def test_one_thread_that_is_not_the_senders_does_all(sender: Sender) -> None:
    sender.listen(hello())
    sender.listen.log_model(ALONE, Model(folder=Path("folder"), name="m"))
    sender.listen(END)
    [thread] = sender.writer.threads
    assert thread != threading.get_ident()


@pytest.mark.parametrize("last", [END, JobFinished(label=ALONE, result=None)], ids=["sweep", "job"])
def test_the_last_event_is_written_when_it_returns(sender: Sender, last: Event) -> None:
    for _ in range(20):
        sender.listen(last)
        assert sender.writer.written[-1:] == [last]
        assert len(sender.writer.written) == len(sender.writer.heard)


def test_what_comes_within_the_interval_is_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "WRITE_INTERVAL_S", 3600.0)
    made, writes = Sender(), list[int]()
    made.writer.on_write = lambda: writes.append(len(made.writer.heard))
    for event in (hello(0), hello(1), hello(2), END):
        made.listen(event)
    assert writes == [4]


def test_what_was_refused_is_tried_again_though_nothing_else_happens(sender: Sender) -> None:
    tries = threading.Semaphore(0)
    sender.writer.num_refusals, sender.writer.on_write = 3, tries.release
    sender.listen(hello())
    assert all(tries.acquire(timeout=60) for _ in range(4))
    sender.listen(END)
    assert sender.writer.written == [hello(), END]


@pytest.mark.parametrize("hangs_in", ["opening", "writing"])
def test_the_end_does_not_wait_for_ever(sender: Sender, monkeypatch: pytest.MonkeyPatch, hangs_in: str) -> None:
    monkeypatch.setattr(background, "OPENING_S", 0.01)
    monkeypatch.setattr(background, "LAST_WRITES_S", -0.99)
    sender.writer.may_write.clear()
    gate = threading.Event()
    if hangs_in == "opening":
        monkeypatch.setattr(FakeWriter, "open", lambda self: gate.wait())
        sender = Sender()
    sender.listen(END)
    gate.set()
    assert len(sender.notices) == 1
    assert "MLflow (somewhere) hangs: the last results may be missing" in sender.notices[0]
    sender.writer.may_write.set()


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_end_waits_as_long_as_the_writer_gets_on_unless_it_was_interrupted(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    monkeypatch.setattr(background, "LAST_WRITES_S", -0.99)
    looks = iter(range(1_000_000))

    def look() -> int:
        if (num_steps := next(looks)) == 5:
            sender.writer.may_write.set()
        return num_steps

    sender.writer.on_look = look
    sender.writer.may_write.clear()
    end = SweepFinished(interrupted=interrupted)
    sender.listen(end)
    assert (sender.writer.written == [end]) is not interrupted
    assert len(sender.notices) == interrupted


def test_an_interrupted_sweep_does_not_wait_for_mlflow_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "OPENING_S", 3600.0)
    monkeypatch.setattr(background, "LAST_WRITES_S", 0.01)
    gate = threading.Event()
    monkeypatch.setattr(FakeWriter, "open", lambda self: gate.wait())
    sender = Sender()
    sender.listen(SweepFinished(interrupted=True))
    gate.set()
    assert "hangs" in sender.notices[0]


def test_what_mlflow_still_lacks_at_the_end_of_a_sweep_is_said(sender: Sender) -> None:
    sender.writer.num_refusals = 1_000_000
    sender.listen(END)
    [notice] = sender.notices
    assert "MLflow (somewhere) lacks some of the results: the same command" in notice


def test_ctrl_c_ends_the_wait_at_the_end(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has jobs in its background ignore it
    monkeypatch.setattr(background, "LAST_WRITES_S", 3600.0)
    sender.writer.may_write.clear()
    sender.writer.on_write = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sender.listen(END)
    assert sender.writer.written == [], "it ended by itself"
    sender.writer.on_write = lambda: None


def test_notices_are_told_by_the_sender_with_its_next_event(sender: Sender) -> None:
    said = threading.Event()

    def say() -> None:
        sender.writer.say("it is away")
        said.set()

    sender.writer.on_write = say
    sender.listen(hello())
    assert said.wait(60)
    sender.writer.on_write = lambda: None
    before = list(sender.notices)
    sender.listen(hello())
    assert (before, sender.notices) in [([], ["it is away"]), (["it is away"], ["it is away"])]
    assert sender.noticed_by == {threading.get_ident()}


def test_a_model_is_logged_after_what_came_before_it(sender: Sender) -> None:
    events = [hello(number) for number in range(100)]
    for event in events:
        sender.listen(event)
    uri = sender.listen.log_model(ALONE, Model(folder=Path("folder"), name="m"))
    assert (uri, sender.notices) == ("models:/m/100", ["a model"])


def test_while_a_write_hangs_records_give_way_to_other_events(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MAX_QUEUED", 10)
    sender.writer.may_write.clear()
    sender.listen(hello())
    assert sender.writer.is_writing.wait(60)
    records, others = [progress(step) for step in range(100)], [hello(number) for number in range(100)]
    for event in (*records, *others):
        sender.listen(event)
    assert len(sender.notices) == 1
    assert "hangs" in sender.notices[0]
    sender.writer.may_write.set()
    sender.listen(END)
    assert sender.writer.written == [hello(), *records[:5], *others[:5], END]


@pytest.mark.parametrize("moment", ["importing", "hanging", "writing", "idle"])
def test_the_process_ends_quietly_whatever_its_writer_does(tmp_path: Path, moment: str) -> None:
    script = """
        import itertools, signal, sys, time
        from pathlib import Path
        from hpo import background
        from hpo.tracking import connect
        from tests.unit.hpo.tracking.events import everything, one_trial, sweep

        background.WRITE_INTERVAL_S, background.LAST_WRITES_S, moment = 0.0, 0.0, sys.argv[1]
        tracker = connect(None, Path("runs"), lambda text: None)
        if moment == "importing":
            while "mlflow" not in sys.modules:
                time.sleep(0.001)
        else:
            tracker._is_ready.wait()
        if moment == "hanging":
            from mlflow import MlflowClient
            MlflowClient.search_runs = lambda *rest, **named: signal.pause()
        for event in everything() if moment in ("hanging", "idle") else [sweep()]:
            tracker(event)
        if moment == "writing":
            for number in range(50):
                for event in one_trial(number):
                    tracker(event)
            time.sleep(0.1)
    """
    environment = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, "-c", textwrap.dedent(script), moment]
    result = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
