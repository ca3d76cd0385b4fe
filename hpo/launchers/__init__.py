"""Starting the ranks of one job, and making sure that none is left. Every launcher gives the same LaunchedJob."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from hpo.devices import ALONE, Placement
from hpo.launchers import processes
from hpo.launchers.fork_server import CannotForkError, ForkServer, LaunchCancelled
from hpo.launchers.job import LaunchedJob
from hpo.launchers.processes import command_line, job_id_prefix
from training.config import JobConfig
from training.run_dir import RunDir

__all__ = [
    "FORK_SERVER",
    "LaunchedJob",
    "LaunchCancelled",
    "command_line",
    "job_id_prefix",
    "launch",
    "launch_check",
    "warm_up",
]

FORK_SERVER = ForkServer()
"""That of this process, which is the parent of its agents."""


def warm_up(config: JobConfig) -> None:
    """Have what jobs like `config` need be imported while this process does something else."""
    if config.distributed.launcher == "fork_server":
        FORK_SERVER.warm_up(config)


def launch(
    config: JobConfig,
    run_dir: RunDir,
    placement: Placement,
    on_notice: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> LaunchedJob:
    """Start the job of `run_dir`, by the launcher that `config` asks for. Raises OSError and LaunchCancelled."""
    if config.distributed.launcher == "fork_server" and placement.num_nodes == 1:
        try:
            return FORK_SERVER.launch(config, [run_dir], placement, is_cancelled=is_cancelled)
        except CannotForkError as error:
            on_notice(f"jobs are started by torchrun, which takes seconds each, not by the fork server: {error}")
    return processes.launch(run_dir, placement)


def launch_check(config: JobConfig, run_dirs: Sequence[RunDir]) -> LaunchedJob:
    """Start a process that builds the jobs of `run_dirs`, all much like `config`, without training. Raises OSError."""
    if config.distributed.launcher == "fork_server":
        with contextlib.suppress(CannotForkError):
            return FORK_SERVER.launch(config, run_dirs, ALONE, is_check=True)
    return processes.launch_check(run_dirs)
