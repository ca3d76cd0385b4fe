"""What a job will take of each GPU, before there is one: predicted per strategy, with the one to take.

The prediction is made by ``training.planning`` in a process of its own; nothing is trained and no GPU is touched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpo.devices import ALONE, Hardware, detect_hardware, place
from hpo.errors import DeviceError, HpoError
from hpo.launchers.processes import environment
from training.config import JobConfig, dump_yaml, parse_size
from training.errors import ConfigError, Failure, FailureKind, Problem, TrainingError
from training.run_dir import PlanRequest, PlanRow, RunDir

CONTEXT_BYTES = 600 * 2**20
"""Of each GPU, outside torch's allocator: CUDA's context and NCCL's buffers (about half a GiB on current drivers)."""
USABLE = 0.95
"""Of the rest: the allocator cannot use every gap."""
COMFORTABLE = 8
"""Samples of a micro-batch below which a GPU is mostly idle."""
TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """The devices to plan for."""

    count: int
    memory_bytes: int
    has_bfloat16: bool = True
    """As since Ampere; assumed of GPUs that are only named."""

    @property
    def usable_bytes(self) -> int:
        """What a job may take of each."""
        return int(USABLE * (self.memory_bytes - CONTEXT_BYTES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The ways to run a job, and which to take."""

    gpus: Gpus
    rows: list[PlanRow]
    recommended: PlanRow | None
    reason: str
    changes: dict[str, Any]
    """What to write into the configuration for it, by dotted key."""


def parse_gpus(text: str) -> Gpus:
    """``4x24GB``, or ``24GB`` for one. Raises HpoError."""
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?(\S+)", text.strip())
    try:
        if match is not None and int(match[1] or 1) > 0:
            return Gpus(count=int(match[1] or 1), memory_bytes=parse_size(match[2]))
    except ValueError:
        pass
    raise HpoError(f"--gpus {text}: must read like 4x24GB or 16GB")


def gpus_here(config: JobConfig, hardware: Hardware) -> Gpus:
    """Those that a job of `config` would get on this machine. Raises DeviceError when there is none."""
    if not hardware.gpus or config.distributed.accelerator == "cpu":
        raise DeviceError("there is no GPU here to plan for; name some: --gpus 4x24GB")
    placement = place(config.distributed, hardware)
    return Gpus(
        count=placement.world_size,
        memory_bytes=hardware.memory_bytes(placement.gpus),
        has_bfloat16=hardware.has_bfloat16(placement.gpus),
    )


def make_plan(config: JobConfig, gpus: Gpus) -> Plan:
    """Every way to run `config` on `gpus`. Raises ConfigError, or TrainingError when the model cannot be traced."""
    try:
        config.batch_plan(gpus.count)
        world_size, unshared = gpus.count, ""
    except ConfigError as error:
        world_size, unshared = 1, f"; for one of the {gpus.count} GPUs, because {error}"
    request = PlanRequest(memory_bytes=gpus.usable_bytes, world_size=world_size, has_bfloat16=gpus.has_bfloat16)
    rows = predict(config, request)
    chosen, reason = recommend(rows, gpus)
    return Plan(gpus=gpus, rows=rows, recommended=chosen, reason=reason + unshared, changes=_changes(chosen, config))


def recommend(rows: list[PlanRow], gpus: Gpus) -> tuple[PlanRow | None, str]:
    """The first way, from the fastest on, that fits with micro-batches which keep a GPU busy."""
    together = [row for row in rows if row.world_size == gpus.count] or rows
    fitting = [row for row in together if row.fits]
    if not fitting:
        smallest = min(together, key=lambda row: row.peak_bytes)
        short = gib(smallest.peak_bytes - gpus.usable_bytes)
        return None, f"even {name(smallest)} is {short} too large; take more or larger GPUs, lora, or a smaller model"
    busy = [row for row in fitting if row.num_micro_batches == 1 or row.micro_batch_size >= COMFORTABLE]
    chosen = (busy or fitting)[0]
    skipped = together[: together.index(chosen)]
    room = f"leaves {gib(gpus.usable_bytes - chosen.peak_bytes)} free"
    if not skipped and chosen.world_size > 1 and any(row.fits for row in rows if row.world_size == 1):
        return chosen, f"it {room}; where an epoch takes seconds, one GPU alone is as good"
    if not skipped:
        return chosen, f"it is the simplest way, and {room}"
    return chosen, f"{name(skipped[-1])} takes {gib(skipped[-1].peak_bytes)} of {gib(gpus.usable_bytes)}; this {room}"


def name(row: PlanRow) -> str:
    """``fsdp, checkpointing``."""
    extras = {"checkpointing": row.gradient_checkpointing, "cpu offload": row.cpu_offload}
    strategy = "one GPU" if row.strategy == "none" else row.strategy
    return ", ".join([strategy, *(extra for extra, is_on in extras.items() if is_on)])


def gib(num_bytes: int) -> str:
    """``1.94 GiB``."""
    return f"{num_bytes / 2**30:.2f} GiB"


def _changes(row: PlanRow | None, config: JobConfig) -> dict[str, Any]:
    if row is None:
        return {}
    changes: dict[str, Any] = {"distributed.strategy": row.strategy}
    if row.world_size > 1:
        changes["distributed.devices"] = row.world_size // config.distributed.num_nodes
    if row.cpu_offload != config.distributed.cpu_offload:
        changes["distributed.cpu_offload"] = row.cpu_offload
    if row.gradient_checkpointing != config.training.gradient_checkpointing:
        changes["training.gradient_checkpointing"] = row.gradient_checkpointing
    own = config.batch_plan(row.world_size)
    if (own.micro_batch_size, own.num_micro_batches) != (row.micro_batch_size, row.num_micro_batches):
        changes |= {"training.accumulate_grad_batches": "auto", "training.max_micro_batch_size": row.micro_batch_size}
    return changes


def as_yaml(changes: dict[str, Any]) -> str:
    """Dotted keys as the blocks they stand in."""
    blocks: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        blocks.setdefault(section, {})[leaf] = value
    return dump_yaml(blocks).rstrip()


def predict(config: JobConfig, request: PlanRequest) -> list[PlanRow]:
    """What ``training.planning`` finds. Raises ConfigError or TrainingError, with what the process says."""
    with tempfile.TemporaryDirectory(prefix="hpo-plan-") as folder:
        run_dir = RunDir(Path(folder))
        run_dir.prepare(config)
        command = [sys.executable, "-m", "training.planning", folder, json.dumps(asdict(request))]
        try:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": environment(ALONE, "plan"), "check": False}
            done = subprocess.run(command, timeout=TIMEOUT_S, **options)
        except subprocess.TimeoutExpired as error:
            raise TrainingError(f"this job cannot be planned within {TIMEOUT_S} s") from error
        rows, failure = run_dir.load_plan(), run_dir.load_error()
    if rows is not None:
        return rows
    failure = failure or Failure(kind=FailureKind.LAUNCH, message=f"the planning ended with status {done.returncode}")
    lines = failure.message.splitlines() or [str(failure.kind)]
    if failure.kind is FailureKind.CONFIG:
        raise ConfigError([Problem(place="", message=line) for line in lines])
    raise TrainingError(f"this job cannot be planned: {lines[0]}")


def gpus_for(text: str | None, config: JobConfig) -> Gpus:
    """The GPUs that ``--gpus`` names of each machine, or those that are here. Raises HpoError."""
    if text is None:
        return gpus_here(config, detect_hardware())
    gpus = parse_gpus(text)
    return replace(gpus, count=gpus.count * config.distributed.num_nodes)
