"""A rank that trains one job after the other: ``python many_jobs.py RUN_DIR ...``, alone or under torchrun.

They share the process group of the first, so a test pays imports and rendezvous of its ranks once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from training.distributed import RunContext, joined_context, run_context
from training.job import run_job
from training.precision import choose_precision
from training.process import die_with_parent, fail, leave, rank_from_environment
from training.run_dir import RunDir


def run_all(run_dirs: list[RunDir]) -> None:
    configs = [run_dir.load_config() for run_dir in run_dirs]
    with run_context(configs[0]) as first:
        for run_dir, config in zip(run_dirs, configs, strict=True):
            precision = choose_precision(config.training.precision, first.device)
            alone = RunContext(device=first.device, precision=precision)
            run_job(run_dir, config, joined_context(config, first.device) if "RANK" in os.environ else alone)


if __name__ == "__main__":
    die_with_parent()
    run_dirs = [RunDir(Path(argument)) for argument in sys.argv[1:]]
    try:
        run_all(run_dirs)
    except BaseException as error:
        fail(run_dirs[0], error, rank=rank_from_environment())
    leave(0)
