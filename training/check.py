"""Everything jobs do before their first step, on the CPU and alone: ``python -m training.check RUN_DIR ...``.

Finds what no schema can: columns, classes, model keys, weights, folds. What it prepares stays in the cache. Each run
directory gets ``checked`` when its job was built, or its ``error.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from training.process import die_with_parent, leave_error, redirect_output
from training.run_dir import RunDir


def main() -> None:
    """Build the job of each run directory and throw it away."""
    die_with_parent()
    check([RunDir(Path(argument)) for argument in sys.argv[1:]])


def check(run_dirs: Sequence[RunDir]) -> None:
    """The same, in this process."""
    redirect_output(run_dirs[0].log("check"))
    for run_dir in run_dirs:
        try:
            _build(run_dir)
            run_dir.checked.touch()
        except BaseException as error:  # sys.exit of a user's code, too
            leave_error(run_dir, error, rank=0)


def _build(run_dir: RunDir) -> None:
    from training.distributed import RunContext
    from training.errors import ConfigError
    from training.guardrails import errors
    from training.job import build_job

    config = run_dir.load_config()
    found = list(errors(build_job(config, RunContext.alone()).build_model(), config))
    if found:
        raise ConfigError(found)


if __name__ == "__main__":
    main()
