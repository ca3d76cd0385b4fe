"""A listener that never lets the sender wait: what it hears goes into a queue, and one thread of its own writes it.

    sender: event -> queue, notices <- queue        writer: queue -> hear ... hear, write; every WRITE_INTERVAL_S

The sender waits at the last event, for a bounded time, and while a model is logged. Notices of the writer are told by
the sender's thread, with its next event. The thread is a daemon: what hangs in it does not
keep the process from its end.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from hpo.events import Event, JobLabel, JobProgress, SweepFinished, is_hurried, is_last
from hpo.mlflow_runs import Model

WRITE_INTERVAL_S = 10.0
"""What comes within this time is written together: a fold that came and went meanwhile costs three calls."""
LAST_WRITES_S = 15.0
"""The end of a sweep tries for this long to write what is missing."""
CATCH_UP_S = 300.0
"""It tries for longer, up to this, as long as MLflow takes something; not when it was interrupted or has a deadline."""
OPENING_S = 60.0
"""It waits for this long before, if it must, for the writer to be ready: on a slow disk an import takes its time.
One that was interrupted waits no longer than for the last writes."""
POLL_INTERVAL_S = 0.01
MAX_QUEUED = 20_000
"""Events kept while the writer hangs in one write; records take no more than half of the places."""


class Writer(Protocol):
    """What the thread does. Nothing here raises, and only that thread calls it."""

    where: str
    """Where it is written to, without credentials."""

    def open(self) -> None:
        """Do what takes long and can be done before the first event."""

    def hear(self, event: Event, at: float) -> None:
        """Take in what happened at that Unix time; write nothing."""

    def write(self) -> None:
        """Write what was heard, as much of it as can be now."""

    @property
    def has_unwritten(self) -> bool:
        """Whether another try may write more."""

    @property
    def num_steps(self) -> int:
        """Grows as long as it gets anywhere; asked for by another thread."""

    def log_model(self, label: JobLabel, model: Model) -> str:
        """Log `model` after all that was heard; returns its URI, or ""."""


class Background:
    """Listens for a writer that `make` makes of the function it is to say notices with."""

    def __init__(self, make: Callable[[Callable[[str], None]], Writer], notice: Callable[[str], None]) -> None:
        self._notice, self._notices = notice, queue.SimpleQueue[str]()
        self._writer = make(self._notices.put)
        self._queue = queue.SimpleQueue[tuple[Event, float] | Callable[[], None]]()
        self._is_ready, self._left_out = threading.Event(), False
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    @property
    def where(self) -> str:
        """The tracking URI without credentials."""
        return self._writer.where

    def __call__(self, event: Event) -> None:
        """Take `event`; wait for it to be written only if it is the last one."""
        if self._has_room_for(event):
            self._queue.put((event, time.time()))
        elif not self._left_out:
            self._left_out = True
            self._notices.put(f"MLflow ({self.where}) hangs: some of what happens now will be missing there")
        if is_last(event):
            self._wait(event)
        self._say_notices()

    def log_model(self, label: JobLabel, model: Model) -> str:
        """Log `model` as one of that job, after all that was sent. Returns its URI, or "" after a notice."""
        uri = Future[str]()

        def log() -> None:
            uri.set_result(self._writer.log_model(label, model))

        self._queue.put(log)
        _wait_until(uri.done, math.inf)
        self._say_notices()
        return uri.result()

    def _has_room_for(self, event: Event) -> bool:
        places = MAX_QUEUED // 2 if isinstance(event, JobProgress) else MAX_QUEUED
        return is_last(event) or self._queue.qsize() < places

    def _wait(self, last: Event) -> None:
        is_written, before = threading.Event(), self._writer.num_steps
        self._queue.put(is_written.set)
        # The writer ends its tries itself after LAST_WRITES_S or CATCH_UP_S, unless one of them hangs.
        goes_on = _wait_until(self._is_ready.is_set, LAST_WRITES_S if is_hurried(last) else OPENING_S)
        while goes_on and not _wait_until(is_written.is_set, LAST_WRITES_S + 1.0):
            num_steps = self._writer.num_steps
            goes_on = num_steps != before and not is_hurried(last)
            before = num_steps
        if not is_written.is_set():
            self._notices.put(f"MLflow ({self.where}) hangs: the last results may be missing there")
        elif isinstance(last, SweepFinished) and self._writer.has_unwritten:
            again = "the same command, called again when it answers, writes them"
            self._notices.put(f"MLflow ({self.where}) lacks some of the results: {again}")

    def _say_notices(self) -> None:
        while not self._notices.empty():
            self._notice(self._notices.get())

    def _work(self) -> None:
        self._writer.open()
        self._is_ready.set()
        while True:
            call = self._gather()
            self._writer.write()
            if call is not None:
                call()

    def _gather(self) -> Callable[[], None] | None:
        """Hear what comes within the interval, or until a call, which is returned: somebody waits for that."""
        until = time.monotonic() + WRITE_INTERVAL_S if self._writer.has_unwritten else None
        while until is None or time.monotonic() < until:
            try:
                item = self._queue.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if callable(item):
                return item
            self._writer.hear(*item)
            until = until or time.monotonic() + WRITE_INTERVAL_S
        return None


def _wait_until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    # In small steps: a signal that the kernel gives to the other thread interrupts no longer wait of this one.
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    return is_so()
