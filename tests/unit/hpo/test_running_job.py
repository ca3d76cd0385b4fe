"""Ending a job in a process that has other threads, and where the kernel has no pidfd."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from hpo.launchers import job as launchers_job
from hpo.launchers.job import LaunchedJob


@pytest.fixture
def another_thread() -> Iterator[None]:
    """It takes every signal that the main thread masks."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("another_thread")
def test_ctrl_c_during_the_killing_is_heard_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    killed = list[str]()

    def kill(job_id: str) -> list[int]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        killed.append(job_id)
        return [7]

    monkeypatch.setattr(launchers_job, "kill_processes", kill)
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(KeyboardInterrupt):
            LaunchedJob(process, "the job").end()
    assert killed == ["the job"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_job_is_waited_for_where_a_sandbox_forbids_pidfd_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    with subprocess.Popen(["sleep", "0.2"]) as process:
        assert LaunchedJob(process, "none has this id").result() == 0
