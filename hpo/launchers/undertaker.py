"""A process that outlives this one by a moment: it kills what jobs have left of which the orchestrator was killed."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading

from hpo.masking import without_secrets


class Undertaker:
    """Started with the first job. It hears of each, and of our end by the end of its input, whatever that end was.

    Ranks die with their agent, and that with us, as the kernel sees to. What ranks start in sessions of their own, it
    does not see to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, job_id: str) -> None:
        """Call before the job starts. Raises OSError."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start()
                atexit.register(_dismiss, self._process)
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # killed just now; another one is told of the next job
                self._process.stdin.write(os.fsencode(f"{job_id}\0"))
                self._process.stdin.flush()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.job_processes"],
        env=without_secrets(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends all processes of a terminal is not for it
    )


def _dismiss(process: subprocess.Popen[bytes]) -> None:
    """At an end of ours that is none of its business."""
    with contextlib.suppress(BrokenPipeError):
        process.communicate()


UNDERTAKER = Undertaker()
"""That of this process."""
