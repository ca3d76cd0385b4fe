"""Who computes on a GPU, as NVML tells it. In a container NVML may name no process, or name it as the host does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

import psutil

from hpo.devices import nvml_device
from hpo.errors import DeviceError

POLL_INTERVAL_S = 0.05


def uuid(gpu: str) -> str:
    """What names `gpu` and no other, whatever CUDA_VISIBLE_DEVICES calls it. Raises DeviceError."""
    import pynvml

    try:
        with nvml_device(gpu) as handle:
            return str(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as error:
        advice = "name it by number or whole UUID in CUDA_VISIBLE_DEVICES, or set distributed.share_devices: true"
        raise DeviceError(f"GPU {gpu} cannot be leased, since NVML does not know it ({error}); {advice}") from error


def occupants(gpus: Collection[str]) -> dict[str, str]:
    """Those of `gpus` on which processes compute, and which: ``process 4711 (python)``.

    This process and those it descends from do not count. A notebook that holds a GPU waits for the sweep it started;
    if the sweep waited for the GPU, neither would ever end.
    """
    ours = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = {gpu: [pid for pid in pids if pid not in ours] for gpu, pids in _processes(gpus).items()}
    return {gpu: _described(pids) for gpu, pids in found.items() if pids}


def left_behind(gpus: Collection[str], timeout_s: float) -> dict[str, str]:
    """Waits until NVML shows no process of this process's jobs on `gpus`; what it still shows after `timeout_s`.

    A job's memory is free some time after its processes are gone.
    """
    deadline = time.monotonic() + timeout_s
    while (found := _remains(gpus)) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    return {gpu: _described(pids) for gpu, pids in found.items()}


def _remains(gpus: Collection[str]) -> dict[str, list[int]]:
    found = {gpu: [pid for pid in pids if _is_of_a_job(pid)] for gpu, pids in _processes(gpus).items()}
    return {gpu: pids for gpu, pids in found.items() if pids}


def _is_of_a_job(pid: int) -> bool:
    """A dead one is taken for it; what else lives there has come meanwhile."""
    if pid == os.getpid():
        return False
    try:
        process = psutil.Process(pid)
        is_dead = process.status() == psutil.STATUS_ZOMBIE
        return is_dead or os.getpid() in (each.pid for each in process.parents())
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # another user's
        return False


def _processes(gpus: Collection[str]) -> dict[str, list[int]]:
    with contextlib.ExitStack() as driver:  # opened once for all, which can take a second
        return {gpu: _processes_on(gpu, driver) for gpu in gpus}


def _processes_on(gpu: str, driver: contextlib.ExitStack) -> list[int]:
    """None where the driver does not tell, as under WSL or of a GPU that fell off the bus."""
    import pynvml

    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(driver.enter_context(nvml_device(gpu)))
    except pynvml.NVMLError:
        return []
    return list(dict.fromkeys(int(process.pid) for process in found))


def _described(pids: list[int]) -> str:
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(_name, pids))}"


def _name(pid: int) -> str:
    try:
        return f"{pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return str(pid)
