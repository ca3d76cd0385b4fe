"""What can be known to fail before anything runs: devices, batches that cannot be shared, missing files and modules."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.definition import StudyDefinition
from hpo.device_locks import lock_folder
from hpo.devices import Hardware, Placement, detect_hardware, place
from hpo.errors import DiskFullError
from hpo.launchers import launch_check
from hpo.resources import devices_per_job
from hpo.sampling import sampled
from training.config import DistributedConfig, JobConfig, Layer, merge, problems_of
from training.errors import ConfigError, Failure, FailureKind, Problem
from training.run_dir import RunDir

NUM_CHECKED = 8
LOCAL_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def preflight(definition: StudyDefinition) -> Placement:
    """Where a job of this study will run. Raises ConfigError with every problem found, and DeviceError."""
    hardware = detect_hardware()
    lock_folder()
    placement = place(_distributed(definition, hardware), hardware)
    problems = list(_batch_problems(definition, placement.world_size))
    wrong = itertools.chain(_missing(definition.job), _unwritable(definition.root), _several_nodes(definition.job))
    problems += [Problem(place=_place_of(definition, key), message=message) for key, message in wrong]
    if problems:
        raise ConfigError(problems)
    return placement


def _distributed(definition: StudyDefinition, hardware: Hardware) -> DistributedConfig:
    """The block as the jobs of a search get it."""
    wish = definition.job.distributed
    if wish.devices != "auto" and definition.config.resources.devices_per_trial == "auto":
        return wish
    return wish.model_copy(update={"devices": devices_per_job(definition, hardware)})


def preflight_job(job: JobConfig) -> Placement:
    """Where `job` will run. Raises ConfigError with every problem found, and DeviceError."""
    lock_folder()
    placement = place(job.distributed, detect_hardware())
    wrong = itertools.chain(_missing(job), _unwritable(Path(job.output.root)))
    problems = [Problem(place=key, message=message) for key, message in wrong]
    try:
        job.batch_plan(placement.world_size)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How many configurations were built, and why some could not be."""

    num_built: int
    failures: list[Failure]


def check_jobs(definition: StudyDefinition) -> Check:
    """Build sampled configurations of a study.

    What the model's keys may be only the model knows, so this is how mistakes in their ranges are found.
    Raises ConfigError when no sampled values go together.
    """
    check = build([job.with_values({"cross_validation.fold": 0}) for job in _distinct_jobs(definition)])
    return replace(check, failures=[_placed(definition, failure) for failure in check.failures])


def build(jobs: Sequence[JobConfig]) -> Check:
    """Build data and model of `jobs` in a process of its own, without training. Raises DiskFullError."""
    with tempfile.TemporaryDirectory(prefix="hpo-check-") as folder:
        run_dirs = [RunDir(Path(folder) / str(number)) for number in range(len(jobs))]
        for run_dir, job in zip(run_dirs, jobs, strict=True):
            run_dir.prepare(job)
        status = launch_check(jobs[0], run_dirs).result()
        failures = [failure for run_dir in run_dirs if (failure := run_dir.load_error())]
        num_built = sum(run_dir.checked.exists() for run_dir in run_dirs)
    if full := next((failure for failure in failures if failure.kind is FailureKind.DISK_FULL), None):
        raise DiskFullError(full.message)
    if status != 0 or num_built + len(failures) < len(jobs):  # what it runs may leave in the middle, with any status
        unexplained = Failure(kind=FailureKind.LAUNCH, message=f"the check ended with status {status}")
        return Check(num_built=0, failures=[*failures, unexplained])
    return Check(num_built=num_built, failures=failures)


def _placed(definition: StudyDefinition, failure: Failure) -> Failure:
    """The failure with file and line before each key that it blames."""
    if failure.kind not in (FailureKind.CONFIG, FailureKind.DATA):
        return failure
    lines = failure.message.splitlines()
    keys = [re.match(r"[a-z_]+(\.\w+)+(?=[: ])", line) for line in lines]
    places = [_place_of(definition, key[0]) if key else "" for key in keys]
    message = "\n".join(f"{place}: {line}" if place else line for place, line in zip(places, lines, strict=True))
    return replace(failure, message=message)


def _distinct_jobs(definition: StudyDefinition) -> list[JobConfig]:
    """Sampled configurations that differ in what is built: data, model, batch. Raises ConfigError without any."""
    jobs: list[JobConfig] = []
    seen: list[dict[str, Any]] = []
    refused: list[ConfigError] = []
    for params in sampled(definition, 4 * NUM_CHECKED):
        built = {key: value for key, value in params.items() if not key.startswith(("optimizer.", "scheduler."))}
        if built in seen:
            continue
        seen.append(built)
        try:
            jobs.append(definition.trial_config(params))
        except ConfigError as error:  # some of many are told when they are sampled
            refused.append(error)
    if not jobs:
        raise refused[0]
    return jobs[:NUM_CHECKED]


def _batch_problems(definition: StudyDefinition, world_size: int) -> Iterator[Problem]:
    """Combinations of batch size and accumulation that the ranks cannot share exactly."""
    keys = ("training.global_batch_size", "training.accumulate_grad_batches")
    for values in itertools.product(*(_candidates(definition, key) for key in keys)):
        try:
            definition.job.with_values(dict(zip(keys, values, strict=True))).batch_plan(world_size)
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
    """Where the value of `key` was written, or is searched."""
    if key in definition.config.search_space and key not in definition.pinned:
        return definition.space.place_of((key,))
    return merge([definition.layer, definition.settings]).place_of(tuple(key.split(".")))


def _unwritable(root: Path) -> Iterator[tuple[str, str]]:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        yield "output.root", f"output.root: '{root}' must be a folder to write in ({reason}); give another"


def _several_nodes(job: JobConfig) -> Iterator[tuple[str, str]]:
    if job.distributed.num_nodes > 1:
        message = "the jobs of a search run on one machine each; leave it at 1, and use hpo train for more"
        yield "distributed.num_nodes", f"distributed.num_nodes: {message}"


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
