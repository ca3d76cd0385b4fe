"""A running job: one process that we started, and everything that descends from it.

Every process of a job carries ``HPO_JOB_ID`` in its environment, so that ranks in sessions of their own, loaders and
other grandchildren are found when their parents are gone.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil

from training.run_dir import JOB_ID

TERM_GRACE_S = 8.0
"""Between the polite signal and the other one; below the 30 s that schedulers leave."""
KILL_GRACE_S = 5.0


class Job:
    """The processes of one launch. ``end`` may be called at any moment, any number of times."""

    def __init__(self, process: subprocess.Popen[bytes], job_id: str) -> None:
        self._process = process
        self._job_id = job_id

    def poll(self) -> int | None:
        """Exit status of the agent, or None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """TERM, bounded wait, KILL, bounded wait; returns when no process of the job is left.

        An impatient second Ctrl-C ends the first wait, not the killing.
        """
        try:
            if self.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(TERM_GRACE_S)
        finally:
            with _deaf():
                kill_processes(self._job_id)
                self._process.wait(KILL_GRACE_S)


def kill_processes(job_id: str) -> None:
    """Kill every process whose job id begins with `job_id`, until none is left."""
    deadline = time.monotonic() + KILL_GRACE_S
    while (found := list(_processes_of(job_id))) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _processes_of(job_id: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # zombies have no environment any more
            if process.environ().get(JOB_ID, "").startswith(job_id):
                yield process


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Signals wait until the block is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
