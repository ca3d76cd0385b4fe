"""Which devices a job gets: what the configuration asks for against what this machine has. NVML, not torch."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpo.errors import DeviceError
from training.config import DistributedConfig
from training.run_dir import Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What this process may use. `gpus` are the identifiers to put in CUDA_VISIBLE_DEVICES."""

    gpus: tuple[str, ...]
    cores: int

    def memory_bytes(self, gpus: tuple[str, ...]) -> int:
        """Of the smallest of `gpus`."""
        return min(_memory_bytes(gpu) for gpu in gpus)

    def has_bfloat16(self, gpus: tuple[str, ...]) -> bool:
        """Whether all of `gpus` multiply bfloat16. Without any, jobs run on the CPU, where ``auto`` is 32 as well."""
        return bool(gpus) and all(_is_ampere(gpu) for gpu in gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where one job runs: `world_size` ranks, as many on each node, one a GPU of `gpus`, or on the CPU without any."""

    world_size: int
    num_nodes: int = 1
    rendezvous: str | None = None
    """Where the agents of several nodes meet."""
    gpus: tuple[str, ...]
    threads_per_rank: int
    notices: tuple[Finding, ...] = ()
    """What was changed of the user's wish, and why."""
    cores: tuple[int, ...] = ()
    """The numbers of the CPU cores that are leased to the job on this machine (hpo/leases.py); none on GPUs."""


ALONE = Placement(world_size=1, gpus=(), threads_per_rank=1)
"""One process that is shown no GPU."""


def detect_hardware() -> Hardware:
    """The visible GPUs and the usable CPU cores."""
    return Hardware(gpus=_visible_gpus(), cores=len(usable_cores()))


def usable_cores() -> tuple[int, ...]:
    """The numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def place(config: DistributedConfig, hardware: Hardware) -> Placement:
    """Resolve the ``distributed`` block. Raises DeviceError when a GPU is demanded and there is none.

    A CPU counts as one device unless a number is asked for, then as many as it has cores.
    """
    on_gpu = config.accelerator == "cuda" or (config.accelerator == "auto" and bool(hardware.gpus))
    if on_gpu and not hardware.gpus:
        raise DeviceError("distributed.accelerator is cuda, but no GPU is visible; set it to auto or cpu")
    available = hardware.gpus if on_gpu else tuple(str(core) for core in range(hardware.cores))
    if config.num_nodes > 1 and config.strategy == "none":
        raise DeviceError("distributed.num_nodes is above 1, but strategy none is one process; use ddp or fsdp")
    if config.num_nodes > 1 and config.rendezvous is None:
        example = "host:port of the first, as the others reach it, such as node0:29400"
        raise DeviceError(f"distributed.rendezvous is needed for {config.num_nodes} machines: {example}")
    chosen, notices = _choose(config, available, on_gpu)
    if config.strategy == "none" and len(chosen) > 1:
        if config.devices != "auto":
            notices.append(_changed("strategy", f"is none, so one of {len(chosen)} devices is used", "set it to auto"))
        chosen = chosen[:1]
    elif config.strategy in ("ddp", "fsdp") and len(chosen) * config.num_nodes == 1:
        kind = "GPU" if on_gpu else "CPU"
        message = f"{config.strategy.upper()} requires multiple devices, falling back to single-{kind} training"
        notices.append(_changed("strategy", message, "set distributed.devices, or strategy: auto"))
    if config.backend == "nccl" and not on_gpu:
        notices.append(_changed("backend", "is nccl, which is for NVIDIA GPUs; gloo is used", "set it to auto"))
    return Placement(
        world_size=len(chosen) * config.num_nodes,
        num_nodes=config.num_nodes,
        rendezvous=config.rendezvous,
        gpus=chosen if on_gpu else (),
        threads_per_rank=_threads(config, hardware, len(chosen)),
        notices=tuple(notices),
    )


def _changed(key: str, message: str, advice: str) -> Finding:
    return Finding(key=f"distributed.{key}", message=message, advice=advice)


def _threads(config: DistributedConfig, hardware: Hardware, world_size: int) -> int:
    wanted = config.threads_per_rank
    return max(1, hardware.cores // world_size) if wanted == "auto" else wanted


def _choose(
    config: DistributedConfig, available: tuple[str, ...], on_gpu: bool
) -> tuple[tuple[str, ...], list[Finding]]:
    kind, wanted, notices = "GPU" if on_gpu else "CPU core", config.devices, list[Finding]()
    if wanted == "auto":
        return (available if on_gpu else available[:1]), notices
    if isinstance(wanted, int):
        if wanted > len(available):
            message = f"{wanted} {kind}s were asked for, but only {len(available)} exist; going on with those"
            notices.append(_changed("devices", message, "set it to auto"))
        return available[:wanted], notices
    missing = [index for index in wanted if index >= len(available)]
    if missing:
        raise DeviceError(f"distributed.devices lists {missing}, but there are only {len(available)} {kind}s")
    indices = list(dict.fromkeys(wanted))
    if len(indices) < len(wanted):
        notices.append(_changed("devices", f"lists a device twice; going on with {indices}", "list each once"))
    return tuple(available[index] for index in indices), notices


def _visible_gpus() -> tuple[str, ...]:
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = tuple(str(index) for index in range(_count_gpus()))
    if mask is None:
        return every
    listed = (part.strip() for part in mask.split(","))
    # As CUDA does it: nothing from the first invalid entry on. UUIDs (GPU-..., MIG-...) are taken at their word.
    valid = itertools.takewhile(lambda part: part in every or part.startswith(("GPU-", "MIG-")), listed)
    return tuple(valid) if every else ()


def _memory_bytes(gpu: str) -> int:
    import pynvml

    with nvml_device(gpu) as handle:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _is_ampere(gpu: str) -> bool:
    """Or newer."""
    import pynvml

    with nvml_device(gpu) as handle:
        return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) >= (8, 0)


@contextlib.contextmanager
def nvml_device(gpu: str) -> Iterator[Any]:
    """NVML's handle of a GPU that CUDA_VISIBLE_DEVICES would name so."""
    import pynvml

    pynvml.nvmlInit()
    try:
        by_number = gpu.isdecimal()
        yield pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(gpu)
    finally:
        pynvml.nvmlShutdown()


def _count_gpus() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
