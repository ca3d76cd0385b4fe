"""Launching a job as forks of a warm process, in a tenth of a second: the client of ``training.fork_server``.

One server for this process, started with the first job or before it (``warm_up``), and again when it ended, when code,
packages or environment changed, or after JOBS_PER_SERVER jobs. Jobs that run do not need it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpo.devices import ALONE, Placement
from hpo.launchers.job import ForkedProcess, LaunchedJob, wait_for_group
from hpo.launchers.processes import cores_of, environment, new_job_id
from hpo.launchers.undertaker import UNDERTAKER
from training.config import JobConfig
from training.job_processes import JOB_ID, PARENT_PID, kill_processes, reap
from training.run_dir import RunDir

JOBS_PER_SERVER = 1000
"""What a server leaks, if it does, goes with it."""
ANSWER_S = 300.0
"""A server that imports from a slow disk takes its time; one that takes longer hangs, and torchrun is used."""
POLL_S = 0.1
"""Between two looks at whether to wait on."""
TRIES = 3
"""A server may just have ended, and the next one be out of date already."""
THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
"""One thread each in the server, because a process of several cannot be forked; ranks set their own number."""
OF_ONE_JOB = {JOB_ID, PARENT_PID, "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
"""Variables that differ from job to job. A server is good for jobs whose other variables are its own."""
PADDING = "." * 4200
"""Room for the longest command line and job id."""
_PR_SET_CHILD_SUBREAPER = 36


class CannotForkError(Exception):
    """This job cannot be forked here; the message says why."""


class LaunchCancelled(Exception):
    """The launch was called off before the job began."""


class ForkServer:
    """A server, started when it is needed. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    @property
    def pid(self) -> int | None:
        """Of the server, when one was started."""
        return self._running.pid if self._running else None

    def warm_up(self, config: JobConfig) -> None:
        """Start the server, which then imports what jobs like `config` need while this process goes on."""
        with self._lock, contextlib.suppress(CannotForkError, OSError):
            self._for(environment(ALONE, "")).send({"config": config.model_dump_json()})

    def launch(
        self,
        config: JobConfig,
        run_dirs: Sequence[RunDir],
        placement: Placement,
        *,
        is_check: bool = False,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> LaunchedJob:
        """Start the job of a run directory, or a check of several.

        Raises CannotForkError, LaunchCancelled and OSError.
        """
        job_id = new_job_id(run_dirs[0])
        UNDERTAKER.watch(job_id)
        request = {
            "run_dirs": [str(run_dir.path) for run_dir in run_dirs],
            "is_check": is_check,
            "config": config.model_dump_json(),
            "num_ranks": placement.world_size,
            "environment": environment(placement, job_id),
            "folder": os.getcwd(),
            "cores": cores_of(placement),
        }
        with self._lock:
            try:
                return LaunchedJob(ForkedProcess(self._ask(request, is_cancelled)), job_id)
            except CannotForkError:
                raise
            except BaseException:  # Ctrl-C, too: an answer may be under way, and an agent
                self.close()
                kill_processes(job_id)
                raise

    def _ask(self, request: dict[str, Any], is_cancelled: Callable[[], bool]) -> int:
        """Process id of the agent."""
        for _ in range(TRIES):
            server = self._for(request["environment"])
            answer = server.ask(request, is_cancelled)
            if "pid" in answer:
                return int(answer["pid"])
            if "unsafe" in answer:
                raise CannotForkError(answer["unsafe"])
            words = self.close()
        raise CannotForkError(answer.get("stale") or f"the fork server ended: {words}")

    def _for(self, variables: Mapping[str, str]) -> _Running:
        """The server, or a new one when it was started otherwise or did enough."""
        lasting = {key: value for key, value in variables.items() if key not in OF_ONE_JOB}
        if self._running and (self._running.variables != lasting or self._running.num_jobs >= JOBS_PER_SERVER):
            self.close()
        self._running = self._running or _Running(lasting)
        return self._running

    def close(self) -> str:
        """End the server, whose jobs go on. Returns the last line that it printed."""
        server, self._running = self._running, None
        return server.end() if server else ""


class _Running:
    """One server process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables, self.num_jobs = variables, 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
        _adopt_orphans()
        self._socket, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "training.fork_server", str(its.fileno()), PADDING],
                # The id is last: see rename. GPUs are counted by NVML, since CUDA, once asked, does not survive a fork.
                env={**variables, **dict.fromkeys(THREADS, "1"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1", JOB_ID: PADDING},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # a Ctrl-C in the terminal is not for it
            )
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self.pid = self._process.pid

    def send(self, request: dict[str, Any]) -> None:
        """Raises OSError when it is gone."""
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()

    def ask(self, request: dict[str, Any], is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Its answer; empty when it has none any more. Raises LaunchCancelled and CannotForkError."""
        self.num_jobs += 1
        try:
            self.send(request)
            self._wait(is_cancelled)
            answer = dict(json.loads(self._lines.readline()))
            reap(-self.pid)  # agents that waited for a job and were not needed: they are of the server's group
            return answer
        except (OSError, ValueError):
            return {}

    def _wait(self, is_cancelled: Callable[[], bool]) -> None:
        answered, deadline = select.poll(), time.monotonic() + ANSWER_S
        answered.register(self._socket, select.POLLIN)
        while not answered.poll(POLL_S * 1000):
            if is_cancelled():
                raise LaunchCancelled
            if time.monotonic() > deadline:
                self._process.kill()
                raise CannotForkError(f"the fork server has not answered for {ANSWER_S:.0f} s")

    def end(self) -> str:
        """Kill it; there is nothing that it could lose. Returns the last line that it printed."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError), self._socket:
            self._lines.close()
        wait_for_group(self.pid)
        with self._log:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def _adopt_orphans() -> None:
    """Have this process be the parent of what its descendants leave behind, such as agents (Linux)."""
    if not sys.platform.startswith("linux"):
        raise CannotForkError("only Linux lets a process adopt the agents that a server forks")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
