"""Launching a job as fresh processes: torchrun for several ranks, one plain Python process for one.

Both execute ``training.main RUN_DIR``; torchrun's rendezvous is local and on a free port (``--standalone``).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpo.devices import ALONE, Placement, usable_cores
from hpo.launchers.job import LaunchedJob
from hpo.launchers.undertaker import UNDERTAKER
from hpo.masking import without_secrets
from training.job_processes import JOB_ID, PARENT_PID
from training.run_dir import RunDir

TORCHRUN = frozenset("RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT".split())
"""What torchrun sets for its ranks: another job's, when we run inside one."""


def launch(run_dir: RunDir, placement: Placement) -> LaunchedJob:
    """Start the job of `run_dir`. Call from a thread that outlives the job: ranks die with it."""
    with _pinned(cores_of(placement)):
        return _start(command(run_dir, placement), run_dir, placement)


def launch_check(run_dirs: Sequence[RunDir]) -> LaunchedJob:
    """Start a process that builds the jobs of `run_dirs`."""
    paths = [str(run_dir.path) for run_dir in run_dirs]
    return _start([sys.executable, "-m", "training.check", *paths], run_dirs[0], ALONE)


def _start(arguments: list[str], run_dir: RunDir, placement: Placement) -> LaunchedJob:
    job_id = new_job_id(run_dir)
    UNDERTAKER.watch(job_id)
    with run_dir.log("agent").open("ab") as log:
        process = subprocess.Popen(
            arguments,
            env=environment(placement, job_id),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C in the terminal is the orchestrator's to handle
        )
    return LaunchedJob(process, job_id)


def cores_of(placement: Placement) -> list[int]:
    """The CPU cores to keep a job on; empty when it may use all of them."""
    return [] if len(placement.cores) == len(usable_cores()) else list(placement.cores)


@contextlib.contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """Processes that this thread starts in the block stay on `cores`."""
    before = os.sched_getaffinity(0) if cores else set()
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)


def new_job_id(run_dir: RunDir) -> str:
    """In the environment of every process of one launch."""
    return f"{job_id_prefix(run_dir.path)}{uuid.uuid4().hex}"


def job_id_prefix(folder: Path) -> str:
    """How the ids of all jobs begin whose run directory is `folder` or in it."""
    return f"{folder.absolute()}{os.sep}"


def command(run_dir: RunDir, placement: Placement) -> list[str]:
    """The argument list; never a shell's string."""
    rank = ["-m", "training.main", str(run_dir.path)]
    if placement.world_size == 1:
        return [sys.executable, *rank]
    meeting = ["--standalone"] if placement.num_nodes == 1 else _meeting(run_dir, placement)
    ranks = ["--nproc-per-node", str(placement.world_size // placement.num_nodes)]
    logs = ["--log-dir", str(run_dir.logs / "torchrun")]
    return [sys.executable, "-m", "training.torchrun", *meeting, *ranks, *logs, *rank]


def _meeting(run_dir: RunDir, placement: Placement) -> list[str]:
    """Where the agents of several nodes find each other. The same for all of them."""
    endpoint = ["--rdzv-endpoint", str(placement.rendezvous)]
    backend = ["--rdzv-backend", "c10d", *endpoint, "--rdzv-id", run_dir.path.name]
    return ["--nnodes", str(placement.num_nodes), *backend]


def command_line(run_dir: RunDir, placement: Placement) -> str:
    """For the shell of another machine, with the same GPUs."""
    variables = [f"{key}={value}" for key, value in _gpu_variables(placement).items()]
    return shlex.join(["env", *variables, *command(run_dir, placement)])


def _gpu_variables(placement: Placement) -> dict[str, str]:
    """The variables by which CUDA shows a process the placement's GPUs and no other."""
    mask = {"CUDA_VISIBLE_DEVICES": ",".join(placement.gpus)}
    numbered_by_us = "CUDA_VISIBLE_DEVICES" not in os.environ  # in NVML's order, which is not CUDA's own
    return {**mask, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if numbered_by_us else mask


def environment(placement: Placement, job_id: str) -> dict[str, str]:
    """The ranks' environment: ours, less secrets and another job's torchrun variables."""
    ours = {name: value for name, value in without_secrets(os.environ).items() if name not in TORCHRUN}
    threads = str(placement.threads_per_rank)
    return {
        **ours,
        **_gpu_variables(placement),
        JOB_ID: job_id,
        PARENT_PID: str(os.getpid()),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GOMP_SPINCOUNT": "2000",  # threads that wait for each other by spinning crawl when anything else wants a core
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
