"""Leases: a job has its devices to itself, GPUs or CPU cores, among all processes of this machine and user.

    place -> choose, one process at a time -> hold a lock per device -> run -> wait until the GPUs are left -> let go

A job takes all its devices at once or none, and holds none while it waits, so no two jobs wait for each other; nobody
holds two leases. Those who wait stand in line: what an earlier one is going to get is not given to a later one.
A GPU that a process without a lease computes on is not free either.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from hpo import device_locks, gpu_processes
from hpo.device_demand import Demand, left_by
from hpo.devices import Hardware, Placement, place, usable_cores
from training.config import DistributedConfig
from training.run_dir import Finding

POLL_INTERVAL_S = 0.05
TOLD_AFTER_S = 5.0
"""Jobs that share a machine on purpose wait for each other all the time, and not for long."""
LEAVING_TIMEOUT_S = 10.0
"""How long a lease outlives its job for a GPU that still shows the job's processes."""
MAX_NAMED = 8
"""Devices that a message names; of more it gives the number."""
SHARE = "distributed.share_devices: true takes what is in use"


class LeaseCancelled(Exception):
    """The wait for devices was called off."""


@contextlib.contextmanager
def lease(
    config: DistributedConfig,
    hardware: Hardware,
    *,
    on_wait: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> Iterator[Placement]:
    """Where a job runs: as ``place`` resolves it, on devices that are leased to the job until the block ends.

    A number of devices is any that are free, a list is exactly those; `auto` is all GPUs but those that strangers use,
    which a notice names. On a CPU a job gets world_size x threads_per_rank cores, or all if there are fewer, with the
    listed ones among them. Of several machines, this one's devices are leased. With `share_devices` nothing is leased.

    When too few are free for TOLD_AFTER_S, `on_wait` hears once what is waited for and who has it; `is_cancelled` is
    asked about every 50 ms. When the block ends, waits up to 10 s until the job has left its GPUs, and `on_wait` hears
    if it has not.
    Raises LeaseCancelled, and DeviceError as ``place`` does or when the locks cannot be kept.
    """
    wish = place(config, hardware)
    if config.share_devices:
        yield wish
        return
    devices = _gpus(hardware) if wish.gpus else _cores()
    with contextlib.ExitStack() as held:
        applicant = _Applicant(device_locks.lock_folder(), devices, _demand(config, wish, devices))
        choice = applicant.wait(held, on_wait, is_cancelled)
        placement = _placed(config, hardware, wish, choice)
        try:
            yield placement
        finally:
            for gpu, processes in gpu_processes.left_behind(placement.gpus, LEAVING_TIMEOUT_S).items():
                on_wait(f"GPU {gpu} still shows {processes}, {LEAVING_TIMEOUT_S:.0f} s after the job's end")


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What there is to choose from: the name of each device's lock, and what its user calls it."""

    kind: str
    labels: dict[str, str]

    def named(self, devices: Collection[str]) -> str:
        """For example ``GPUs 0, 1``, or ``64 CPU cores``."""
        kind = self.kind if len(devices) == 1 else f"{self.kind}s"
        if len(devices) > MAX_NAMED:
            return f"{len(devices)} {kind}"
        return f"{kind} {', '.join(self.labels[device] for device in devices)}"


def _gpus(hardware: Hardware) -> Devices:
    uuids = {re.sub(r"[^\w.-]", "_", gpu_processes.uuid(gpu)): gpu for gpu in hardware.gpus}
    return Devices(kind="GPU", labels={f"gpu-{uuid}": gpu for uuid, gpu in uuids.items()})


def _cores() -> Devices:
    return Devices(kind="CPU core", labels={f"core-{core}": str(core) for core in usable_cores()})


def _demand(config: DistributedConfig, wish: Placement, devices: Devices) -> Demand:
    pool, ranks = tuple(devices.labels), wish.world_size // wish.num_nodes
    indices = list(dict.fromkeys(config.devices))[:ranks] if isinstance(config.devices, list) else []
    if not wish.gpus:
        listed = tuple(pool[index] for index in indices if index < len(pool))
        return Demand(pool=pool, listed=listed, count=min(ranks * wish.threads_per_rank, len(pool)))
    if indices:
        listed = tuple(device for gpu in wish.gpus for device in pool if devices.labels[device] == gpu)
        return Demand(pool=listed, listed=listed, count=len(listed))
    return Demand(pool=pool, count=min(ranks, len(pool)), is_modest=config.devices == "auto")


def _placed(config: DistributedConfig, hardware: Hardware, wish: Placement, choice: _Choice) -> Placement:
    """`wish` on the devices of `choice`."""
    if not wish.gpus:
        return replace(wish, cores=tuple(sorted(map(int, choice.taken))))
    if len(choice.taken) < len(wish.gpus):  # so ddp may have become one process, and each rank has more threads
        wish = place(config, replace(hardware, gpus=choice.taken))
    advice = "distributed.share_devices: true uses it all the same"
    skipped = [
        Finding(key="distributed.devices", message=f"GPU {gpu} is busy with {processes}, skipped", advice=advice)
        for gpu, processes in choice.strangers.items()
    ]
    return replace(wish, gpus=choice.taken, notices=(*wish.notices, *skipped))


# Asking until there is enough


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """What came of asking once. Devices go by their labels."""

    taken: tuple[str, ...] = ()
    """What the job got: all it needs, or nothing."""
    strangers: dict[str, str]
    """GPUs in use by processes without a lease, and by which."""
    obstacles: tuple[str, ...] = ()
    """Why it is nothing."""


class _Applicant:
    """One job that asks for devices until it has them."""

    def __init__(self, folder: Path, devices: Devices, demand: Demand) -> None:
        self._folder, self._devices, self._demand = folder, devices, demand
        self._place: Path | None = None
        """Its place in line, once it had to wait."""

    def wait(
        self, held: contextlib.ExitStack, on_wait: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> _Choice:
        """Ask until there is enough; `held` gets the locks. Raises LeaseCancelled."""
        silent_until = time.monotonic() + TOLD_AFTER_S
        with contextlib.ExitStack() as in_line:
            while not is_cancelled():
                choice = self._ask(held, in_line)
                if choice is not None and choice.taken:
                    return choice
                if choice is not None and time.monotonic() >= silent_until:
                    on_wait(f"waiting for {self._wish()}: {'; '.join(choice.obstacles)}; {SHARE}")
                    silent_until = math.inf
                time.sleep(POLL_INTERVAL_S)
        raise LeaseCancelled

    def _ask(self, held: contextlib.ExitStack, in_line: contextlib.ExitStack) -> _Choice | None:
        """Take all that is demanded or get a place in line; None while another process chooses."""
        with device_locks.choosing(self._folder) as is_my_turn:
            if not is_my_turn:
                return None
            choice = self._choose(held)
            if choice.taken:
                in_line.close()  # here, or the next to choose would leave us as much again
            elif self._place is None:
                waits = device_locks.place_in_line(self._folder, self._demand.to_line())
                self._place = in_line.enter_context(waits)
            return choice

    def _choose(self, held: contextlib.ExitStack) -> _Choice:
        with contextlib.ExitStack() as tried:
            free = self._lock_what_is_free(tried)
            strange = self._strangers(free)
            earlier = self._earlier()
            left = left_by((demand for _, demand in earlier), free.keys() - strange.keys(), strange)
            strangers = {self._devices.labels[device]: processes for device, processes in strange.items()}
            if not self._demand.is_met(left, strange):
                return _Choice(
                    strangers=strangers, obstacles=self._obstacles(free, strangers, [who for who, _ in earlier])
                )
            taken = self._demand.claim(left, strange)
            for device in free.keys() - set(taken):
                free[device].release()
            for device in taken:
                device_locks.sign(device_locks.lock_path(self._folder, device))
            held.enter_context(tried.pop_all())
        return _Choice(taken=tuple(self._devices.labels[device] for device in taken), strangers=strangers)

    def _lock_what_is_free(self, tried: contextlib.ExitStack) -> dict[str, FileLock]:
        locks = {}
        for device in self._demand.pool:
            lock = device_locks.try_lock(device_locks.lock_path(self._folder, device))
            if lock is not None:
                tried.callback(lock.release)
                locks[device] = lock
        return locks

    def _strangers(self, free: Collection[str]) -> dict[str, str]:
        if self._devices.kind != "GPU":
            return {}
        gpus = {self._devices.labels[device]: device for device in self._demand.pool if device in free}
        return {gpus[gpu]: processes for gpu, processes in gpu_processes.occupants(gpus).items()}

    def _earlier(self) -> list[tuple[str, Demand]]:
        """Who else waits for devices of our pool, and has waited longer."""
        found = device_locks.waiting(self._folder, before=self._place)
        demands = [(who, Demand.from_line(line)) for who, line in found]
        return [(who, demand) for who, demand in demands if set(demand.pool) & set(self._demand.pool)]

    # What is said

    def _wish(self) -> str:
        demand = self._demand
        if demand.count == len(demand.listed):
            return self._devices.named(demand.listed)
        pool = self._devices.named(demand.pool)
        return pool if demand.count == len(demand.pool) else f"{demand.count} of {pool}"

    def _obstacles(self, free: Collection[str], strangers: dict[str, str], earlier: Collection[str]) -> tuple[str, ...]:
        holders: dict[str, list[str]] = {}
        for device in (device for device in self._demand.pool if device not in free):
            who = device_locks.holder(device_locks.lock_path(self._folder, device))
            holders.setdefault(who, []).append(device)
        return (
            *(f"{who} holds {self._devices.named(devices)}" for who, devices in holders.items()),
            *(f"GPU {gpu} is busy with {processes}" for gpu, processes in strangers.items()),
            *(f"{who} waits since before" for who in dict.fromkeys(earlier) if who not in holders),
        )
