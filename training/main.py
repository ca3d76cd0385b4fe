"""What every rank of a job executes, whoever starts it: ``python -m training.main RUN_DIR``.

Reads ``config.yaml`` of the run directory, trains, and leaves ``result.json`` (rank 0) or ``error.json`` (the first
rank that fails). Owns the life of the process and of its process group. Exit status: 0 when the training ended or was
asked to stop, 1 when it failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from training.process import (
    die_with_parent,
    fail,
    leave,
    no_garbage_collection,
    rank_from_environment,
    redirect_output,
)
from training.run_dir import RunDir


def main() -> None:
    """Run one rank."""
    die_with_parent()
    run_rank_here(RunDir(Path(sys.argv[1])))
    leave(0)


def run_rank_here(run_dir: RunDir) -> None:
    """Let this process be a rank of the job in `run_dir`; when it fails, it ends here."""
    rank = rank_from_environment()
    redirect_output(run_dir.log(f"rank_{rank}"))
    try:
        run_rank(run_dir)
    except BaseException as error:  # sys.exit of a user's code, too
        fail(run_dir, error, rank=rank)


def run_rank(run_dir: RunDir) -> None:
    """Join the job, train, and leave the result before the process group is closed. All ranks."""
    # Imported here, so that a broken installation is a failure with a traceback in error.json like any other.
    with no_garbage_collection():
        import torch

        from training.distributed import run_context
        from training.job import run_job

    if threads := os.environ.get("OMP_NUM_THREADS"):  # read at the import, which a forked rank did not do
        torch.set_num_threads(int(threads))
    config = run_dir.load_config()
    with run_context(config, is_last=True) as context:
        run_job(run_dir, config, context)


if __name__ == "__main__":
    main()
