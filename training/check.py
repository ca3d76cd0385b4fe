"""Everything a job does before its first step, on the CPU and alone: ``python -m training.check RUN_DIR``.

Finds what no schema can: columns, classes, model keys, weights, folds. What it prepares stays in the cache.
Exit status 0, or 1 with ``error.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.process import die_with_parent, fail, redirect_output
from training.run_dir import RunDir


def main() -> None:
    """Build the job of the run directory and throw it away."""
    die_with_parent()
    run_dir = RunDir(Path(sys.argv[1]))
    redirect_output(run_dir.log("check"))
    try:
        import torch

        from training.distributed import RunContext
        from training.job import build_job

        build_job(run_dir.load_config(), RunContext(rank=0, world_size=1, device=torch.device("cpu")))
    except Exception as error:
        fail(run_dir, error, rank=0)


if __name__ == "__main__":
    main()
