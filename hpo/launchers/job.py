"""A running job: one process that we started, and everything that descends from it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from hpo.interruption import NOTICES
from training.job_processes import KILL_GRACE_S, kill_processes, reap

TERM_GRACE_S = 8.0
"""Between the polite signal and the other one; below the 30 s that schedulers leave."""


class Process(Protocol):
    """What a LaunchedJob needs of its agent; ``subprocess.Popen`` is one."""

    pid: int

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Nothing happens when it has ended."""


class ForkedProcess:
    """A child that somebody else forked for us."""

    def __init__(self, pid: int) -> None:
        self.pid, self._status = pid, None

    _status: int | None

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody waited for every child there is; the result file decides
                self._status = 0
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def send_signal(self, number: int, /) -> None:
        """Nothing happens when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class LaunchedJob:
    """The processes of one launch. ``end`` may be called at any moment, any number of times."""

    def __init__(self, process: Process, job_id: str) -> None:
        self._process = process
        self._job_id = job_id

    def poll(self) -> int | None:
        """Exit status of the agent, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float, also: int | None = None) -> None:
        """Return when the agent has ended or the descriptor `also` is readable, at once, or after `timeout_s`."""
        if self.poll() is not None:
            return
        try:
            descriptor = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox that forbids it; or it has just gone
            time.sleep(min(timeout_s, 0.02))
            return
        try:
            poller = select.poll()
            for each in (descriptor,) if also is None else (descriptor, also):
                poller.register(each, select.POLLIN)
            poller.poll(timeout_s * 1000)
        finally:
            os.close(descriptor)

    def result(self) -> int:
        """Wait for the agent to end; its exit status. Nothing of the job is left, also after an exception."""
        try:
            while (status := self.poll()) is None:
                self.wait(1.0)
        finally:
            self.end()
        return status

    def end(self, is_urgent: Callable[[], bool] = lambda: False) -> list[int]:
        """HUP, bounded wait, KILL, bounded wait. Returns what could not be killed, by process id; nothing as a rule.

        SIGTERM is what a scheduler sends, and a rank that gets it goes on until it has left a checkpoint.
        An impatient second Ctrl-C, here or as `is_urgent` tells of it, ends the first wait, not the killing.
        """
        try:
            if self.poll() is None:
                self._process.send_signal(signal.SIGHUP)
                deadline = time.monotonic() + TERM_GRACE_S
                while self.poll() is None and time.monotonic() < deadline and not is_urgent():
                    self.wait(0.1)
        finally:
            with _signals_held():
                left = kill_processes(self._job_id)
                self.wait(KILL_GRACE_S)
                self.poll()
                reap(-self._process.pid)
        return left


def wait_for_group(pid: int, timeout_s: float = 0.5) -> None:
    """Reap what is about to die of the process group `pid`, which is ours to reap."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if not os.waitpid(-pid, os.WNOHANG)[0]:
                time.sleep(0.002)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """What Ctrl-C and the signals of schedulers raise in the main thread waits until the block is over.

    A mask would not do: the kernel gives a signal that one thread masks to another, and Python runs its handler in the
    main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler runs here
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, *NOTICES)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
