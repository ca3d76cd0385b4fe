"""What can be known to fail before anything runs: devices, batches that cannot be shared, missing files and modules."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.definition import StudyDefinition
from hpo.devices import Placement, detect_hardware, place
from hpo.launchers.processes import environment
from training.config import ConfigError, Failure, FailureKind, JobConfig, Layer, Problem, merge, problems_of
from training.run_dir import RunDir

ALONE = Placement(world_size=1, gpus=(), threads_per_rank=1)
LOCAL_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def preflight(definition: StudyDefinition) -> Placement:
    """Where a job of this study will run. Raises ConfigError with every problem found, and DeviceError."""
    placement = place(definition.job.distributed, detect_hardware())
    problems = list(_batch_problems(definition, placement.world_size))
    problems += [
        Problem(place=_place_of(definition, key), message=message) for key, message in _missing(definition.job)
    ]
    if problems:
        raise ConfigError(problems)
    return placement


def check_job(definition: StudyDefinition) -> Failure | None:
    """Build the first fold's data and model in a process of its own, without training; the failure, if it fails."""
    with tempfile.TemporaryDirectory(prefix="hpo-check-") as folder:
        run_dir = RunDir(Path(folder))
        run_dir.prepare(definition.job.with_values({"cross_validation.fold": 0}))
        command = [sys.executable, "-m", "training.check", folder]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment(ALONE, "check"), check=False)
        unexplained = Failure(kind=FailureKind.LAUNCH, message=f"the check ended with status {done.returncode}")
        return None if done.returncode == 0 else run_dir.load_error() or unexplained


def _batch_problems(definition: StudyDefinition, world_size: int) -> Iterator[Problem]:
    """Combinations of batch size and accumulation that the ranks cannot share exactly."""
    keys = ("training.global_batch_size", "training.accumulate_grad_batches")
    for values in itertools.product(*(_candidates(definition, key) for key in keys)):
        try:
            definition.job.with_values(dict(zip(keys, values, strict=True))).micro_batch_size(world_size)
        except (ConfigError, ValidationError) as error:
            found = error.problems if isinstance(error, ConfigError) else problems_of(error, JobConfig, Layer())
            yield from (Problem(place=_place_of(definition, keys[0]), message=problem.message) for problem in found)


def _candidates(definition: StudyDefinition, key: str) -> list[Any]:
    parameter = definition.config.search_space.get(key)
    if parameter is None or key in definition.pinned:
        section, _, name = key.partition(".")
        return [getattr(getattr(definition.job, section), name)]
    if parameter.int_range is None:
        return list(parameter.choice or ())
    low, high = parameter.int_range
    return [low, min(low + int(parameter.step or 1), high)]  # when ranks can share these two, they can share them all


def _place_of(definition: StudyDefinition, key: str) -> str:
    """Where the value of `key` was written; the name of its search where there is one."""
    if key in definition.config.search_space and key not in definition.pinned:
        return f"search_space.{key}"
    return merge([definition.layer, definition.settings]).place_of(tuple(key.split(".")))


def _missing(job: JobConfig) -> Iterator[tuple[str, str]]:
    name = job.data.name
    if name.lower().endswith(LOCAL_SUFFIXES) and not os.path.exists(os.path.expanduser(name)):
        yield "data.name", f"data.name: there is no file '{name}' (seen from {Path.cwd()})"
    if ":" in job.task:
        package, found = job.task.partition(":")[0].partition(".")[0], False
        sys.path.insert(0, "")  # as in the ranks, which start in this folder
        try:
            with contextlib.suppress(ValueError):  # a module without a spec, such as __main__
                found = find_spec(package) is not None
            if not found:
                yield "task", f"task: no module '{package}' here; start hpo in the folder that holds it, or install it"
        finally:
            sys.path.remove("")
