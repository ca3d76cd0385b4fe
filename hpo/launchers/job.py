"""A running job: one process that we started, and everything that descends from it.

Every process of a job carries ``HPO_JOB_ID`` in its environment, so that ranks in sessions of their own, loaders and
other grandchildren are found when their parents are gone.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import psutil

JOB_ID = "HPO_JOB_ID"
TERM_GRACE_S = 8.0
"""Between the polite signal and the other one; below the 30 s that schedulers leave."""
KILL_GRACE_S = 5.0


class Job:
    """The processes of one launch. ``end`` may be called at any moment, any number of times."""

    def __init__(self, process: subprocess.Popen[bytes], job_id: str) -> None:
        self._process = process
        self._job_id = job_id

    @property
    def pid(self) -> int:
        """Process id of the agent (or of the only rank)."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status of the agent, or None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """TERM, bounded wait, KILL, bounded wait; returns when no process of the job is left."""
        if self.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_GRACE_S)
        deadline = time.monotonic() + KILL_GRACE_S
        while self._kill_all() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._process.wait(KILL_GRACE_S)

    def _kill_all(self) -> bool:
        """Kill what carries the job's id; False when nothing did."""
        found = list(processes_of(self._job_id))
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(found)


def processes_of(job_id: str) -> Iterator[psutil.Process]:
    """Every live process that carries `job_id` (zombies have no environment any more)."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(JOB_ID) == job_id:
                yield process
