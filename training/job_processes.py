"""The processes of a job, found by the ``HPO_JOB_ID`` that each has in its environment, whoever its parent is by now.

``python -m training.job_processes`` reads job ids, a zero byte after each, and at the end of its input kills what is
left of these jobs (hpo/launchers/undertaker.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import psutil

JOB_ID, PARENT_PID = "HPO_JOB_ID", "HPO_PARENT_PID"
"""Environment variables that whoever launches a job sets for its ranks: the job's id, the launching process."""
KILL_GRACE_S = 5.0


def kill_processes(*job_ids: str) -> list[int]:
    """Kill every process whose job id begins with one of these; the ids of those that are there KILL_GRACE_S later."""
    deadline, killed = time.monotonic() + KILL_GRACE_S, set[int]()
    while (found := list(processes_of(*job_ids))) and time.monotonic() < deadline:
        for process in found:
            killed.add(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)
    for pid in killed:
        reap(pid)
    return [process.pid for process in found]


def processes_of(*job_ids: str) -> Iterator[psutil.Process]:
    """Every live process whose job id begins with one of these, of those that this user may look at."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # zombies have no environment any more
            if process.environ().get(JOB_ID, "").startswith(job_ids):
                yield process


def reap(pid: int) -> None:
    """Take what is left of a dead process that we adopted, or of all such in the process group -`pid`."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    kill_processes(*os.fsdecode(sys.stdin.buffer.read()).split("\0")[:-1])
