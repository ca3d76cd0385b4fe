"""What every rank of a job executes, whoever starts it: ``python -m training.main RUN_DIR``.

Reads ``config.yaml`` of the run directory, trains, and leaves ``result.json`` (rank 0) or ``error.json`` (the first
rank that fails). Then goes on in the run directory that it is told, as the folds of a trial do, or ends. A rank that is
told to leave (SIGTERM) asks its job to stop. Owns the life of the process and of its process group. Exit status: 0 when
the trainings ended or were asked to stop, 1 when one failed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.job_processes import JOB_ID
from training.process import (
    die_on_notice,
    die_with_parent,
    fail,
    forget_training,
    leave,
    leave_on_notice,
    no_garbage_collection,
    rank_from_environment,
    redirect_output,
)
from training.run_dir import RunDir

LINGER_S = 60.0
"""How long a rank that is done waits to be told where to go on."""


def main() -> None:
    """Run one rank."""
    die_with_parent()
    run_rank_here(RunDir(Path(sys.argv[1])))
    leave(0)


def run_rank_here(run_dir: RunDir) -> None:
    """Let this process be a rank of the job in `run_dir`, and of those that follow; when one fails, it ends here."""
    rank = rank_from_environment()
    redirect_output(run_dir.log(f"rank_{rank}"))
    leave_on_notice(run_dir)
    try:
        with _joined(run_dir) as train:
            train(run_dir)
            die_on_notice()
            while following := _where_next(run_dir):
                run_dir = following
                leave_on_notice(run_dir)
                redirect_output(run_dir.log(f"rank_{rank}"))
                train(run_dir)
                die_on_notice()
    except BaseException as error:  # sys.exit of a user's code, too
        fail(run_dir, error, rank=rank)


@contextmanager
def _joined(run_dir: RunDir) -> Iterator[Callable[[RunDir], None]]:
    """Join the other ranks. Gives what trains in a run directory and leaves the result there. All ranks."""
    # Imported here, so that a broken installation is a failure with a traceback in error.json like any other.
    with no_garbage_collection():
        import torch

        from training.distributed import run_context
        from training.job import run_job

    if threads := os.environ.get("OMP_NUM_THREADS"):  # read at the import, which a forked rank did not do
        torch.set_num_threads(int(threads))
    with run_context(run_dir.load_config(), is_last=True) as context:
        yield lambda run_dir: run_job(run_dir, run_dir.load_config(), context)


def _where_next(run_dir: RunDir) -> RunDir | None:
    """Wait to be told where to go on, if somebody follows this job who could tell. All ranks are told the same."""
    if JOB_ID not in os.environ:
        return None
    is_told = run_dir.next.exists()
    if not is_told or run_dir.load_next():  # what is left now, the next job would keep for good
        forget_training()
    deadline = time.monotonic() + LINGER_S
    while not run_dir.next.exists():
        if time.monotonic() > deadline:
            run_dir.write_next(None)
        time.sleep(0.001)
    return run_dir.load_next()


if __name__ == "__main__":
    main()
