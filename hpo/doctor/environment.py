"""This machine: what jobs need of it, who else uses it, and what they would trip over."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from hpo import device_locks, gpu_processes
from hpo.console import counted
from hpo.devices import detect_hardware, nvml_device
from hpo.doctor.filesystem import existing, network_kind
from hpo.doctor.finding import Finding, attempted, note, ok, problem, processes_with
from hpo.errors import DeviceError
from hpo.plan import gib
from training.config import JobConfig

PROBE_S = 180.0
"""An import of torch from a slow disk takes its time."""
PROBE = """
import json, torch, torch.distributed as dist
has_nccl = dist.is_available() and dist.is_nccl_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "sees": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "kernels": torch.cuda.get_arch_list(),
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
    "gloo": dist.is_available() and dist.is_gloo_available(),
}))
"""
"""Asked in a process of its own: this one never imports torch. Opens no GPU."""
OLDEST_TORCH = (2, 10)
"""As in pyproject.toml."""
DASHBOARD_PORT = 8080
GIB = 2**30
FREE_DISK, PLENTY_OF_DISK = 1 * GIB, 5 * GIB
"""Less is a problem, or worth a note: a trial's checkpoints are some copies of its model."""
FREE_FILES = 10_000
FREE_SHM = GIB // 4
"""Loaders hand their batches over in /dev/shm, and nccl its buffers; a container has 64 MiB unless it is told."""
SHM_OF_JOBS = re.compile(r"torch_\d+_\d+_\d+|nccl-\w+")
SHM_AGE_S = 600.0
SKEW_S = 2.0
IDLE_BYTES = GIB // 2
"""What a GPU may show as used when nobody computes on it."""


def environment_findings(job: JobConfig) -> Iterator[Finding]:
    """Of the machine that jobs like `job` are to run on."""
    root = Path(job.output.root).absolute()
    probe = probe_torch()
    yield ok("python", f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}")
    yield from torch_findings(probe)
    yield from attempted("gpu", lambda: _gpus(probe))
    yield from attempted("devices", _devices)
    yield from attempted("ports", _ports)
    yield from attempted("/dev/shm", lambda: _shared_memory(job))
    yield from attempted("disk", lambda: _disk(root))
    yield from attempted("clock", lambda: _clock(root))


# torch


def probe_torch(code: str = PROBE) -> dict[str, Any] | str:
    """What torch says of itself, or why it cannot be imported."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_S)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        return f"its import takes more than {PROBE_S:.0f} s"
    return answer or (done.stderr.strip().splitlines() or [f"its import ended with status {done.returncode}"])[-1]


def torch_findings(probe: dict[str, Any] | str) -> Iterator[Finding]:
    """Whether torch is there and new enough, and can have ranks meet."""
    install = f"{shlex.quote(sys.executable)} -m pip install"
    if isinstance(probe, str):
        yield problem("torch", f"cannot be imported: {probe}", fix=f"{install} --force-reinstall torch")
        return
    version = probe["version"]
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        yield problem("torch", f"{version} is older than {oldest}", fix=f"{install} 'torch>={oldest}'")
    else:
        yield ok("torch", f"{version}, built for {'CUDA ' + probe['cuda'] if probe['cuda'] else 'the CPU alone'}")
    if not probe["gloo"]:
        yield problem("gloo", "this torch has none, so no job can have several ranks", fix=f"{install} torch")


# GPUs


def _gpus(probe: dict[str, Any] | str) -> Iterator[Finding]:
    import pynvml

    gpus = detect_hardware().gpus
    if not gpus:
        hidden = " (CUDA_VISIBLE_DEVICES hides those there may be)" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        yield note("gpu", f"none is visible{hidden}: jobs run on the CPU; driver, CUDA and NCCL are not looked at")
        return
    with nvml_device(gpus[0]):
        driver, newest = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    yield ok("driver", f"{driver}, for CUDA {newest} at most")
    if not isinstance(probe, str):
        yield from cuda_findings(probe, len(gpus), newest, {gpu: _capability(gpu) for gpu in gpus})
    locked, strangers = _locked() or {}, gpu_processes.occupants(gpus)
    for gpu in gpus:
        yield _gpu(gpu, locked, strangers.get(gpu))


def _capability(gpu: str) -> int:
    import pynvml

    with nvml_device(gpu) as handle:
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return int(major) * 10 + int(minor)


def cuda_findings(probe: dict[str, Any], num_gpus: int, newest: int, capabilities: dict[str, int]) -> Iterator[Finding]:
    """Whether this torch can use the GPUs: `newest` is the CUDA of the driver, capabilities are 90 for 9.0."""
    version = probe["version"].partition("+")[0]
    python = shlex.quote(sys.executable)
    again = f"{python} -m pip uninstall -y torch && {python} -m pip install torch=={version}"
    if probe["cuda"] is None:
        yield problem("cuda", f"torch is built for the CPU alone, and {counted(num_gpus, 'GPU')} not used", fix=again)
        return
    if int(probe["cuda"].partition(".")[0]) > newest:
        text = f"torch needs a driver for CUDA {probe['cuda']}, and this one is for CUDA {newest}; install a newer one"
        yield problem("cuda", text)
    elif probe["sees"] < num_gpus:
        yield problem("cuda", f"torch can open {probe['sees']} of {num_gpus} GPUs; dmesg may say why", fix="nvidia-smi")
    else:
        yield ok("cuda", f"{probe['cuda']}, torch sees {counted(probe['sees'], 'GPU')}")
    for gpu in (gpu for gpu, capability in capabilities.items() if not _has_kernels(probe["kernels"], capability)):
        found = capabilities[gpu] / 10
        yield problem("cuda", f"this torch has no kernels for GPU {gpu} of compute capability {found}", fix=again)
    if probe["nccl"]:
        yield ok("nccl", probe["nccl"])
    elif num_gpus > 1:
        yield problem("nccl", f"this torch has none, so {num_gpus} GPUs cannot work on one job", fix=again)


def _has_kernels(built: list[str], capability: int) -> bool:
    """Machine code of the same generation and not newer, or code that the driver can still translate."""
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(built)):
        if int(digits) <= capability and (kind == "compute" or int(digits) // 10 == capability // 10):
            return True
    return False


def _gpu(gpu: str, locked: dict[str, str], stranger: str | None) -> Finding:
    import pynvml

    uuid = gpu_processes.uuid(gpu)
    with nvml_device(gpu) as handle:
        name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    what = f"{gpu}: {name}, {gib(memory.used)} of {gib(memory.total)} in use"
    if holder := locked.get(f"gpu-{uuid}"):
        return ok("gpu", f"{what}, leased by {holder}")
    if stranger:
        return note("gpu", f"{what} by {stranger}, which leases nothing: jobs do without this GPU")
    if memory.used > IDLE_BYTES:
        return note("gpu", f"{what} by nobody that NVML names: another container's, or left behind", fix="nvidia-smi")
    return ok("gpu", f"{what}, free")


# Devices


def _locked() -> dict[str, str] | None:
    """The devices that are leased and to whom; None when others keep choosing."""
    for _ in range(20):
        if (found := device_locks.locked(device_locks.lock_folder())) is not None:
            return found
    return None


def _devices() -> Iterator[Finding]:
    elsewhere = f"export {device_locks.FOLDER_VARIABLE}=$(mktemp -d)  # the same for all that share the devices"
    try:
        folder = device_locks.lock_folder()
    except DeviceError as error:
        yield problem("devices", str(error), fix=elsewhere)
        return
    if kind := network_kind(folder):
        text = f"{folder}, where devices are locked, is on a network file system ({kind})"
        yield problem("devices", text, fix=elsewhere)
    locked = _locked()
    if locked is None:
        yield note("devices", "other jobs were choosing all the time; look again")
        return
    stuck = [
        _orphaned(device, holder, int(pid[1]))
        for device, holder in locked.items()
        if (pid := re.match(r"pid (\d+)", holder)) and not psutil.pid_exists(int(pid[1]))
    ]
    yield from stuck
    if not stuck:
        holders = ", ".join(dict.fromkeys(locked.values()))
        yield ok("devices", f"{len(locked)} leased, by {holders}" if locked else "none is leased")


def _orphaned(device: str, holder: str, pid: int) -> Finding:
    """A lock outlives its process when a child of that has it open."""
    users = processes_with(str(device_locks.lock_path(device_locks.lock_folder(), device)))
    heirs = [user for user in users if _namespace(user) == _namespace(os.getpid())]
    if not heirs:
        return ok("devices", f"{device} is leased by {holder}, a process of another container")
    text = f"{device} is still locked for {holder}, which is dead: process {heirs[0]} that it started holds on to it"
    return problem("devices", text, fix=f"kill {shlex.join(map(str, heirs))}")


def _namespace(pid: int) -> str:
    """In which the numbers of processes are those of `pid`; a container has its own."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


# Ports, memory, disk, clock


def _ports() -> Iterator[Finding]:
    """Ranks meet on 127.0.0.1, torchrun's on localhost; each on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5.0)
        with socket.create_connection(server.getsockname(), timeout=5.0), server.accept()[0]:
            pass
    if not any(each[4][0] in ("127.0.0.1", "::1") for each in socket.getaddrinfo("localhost", None)):
        yield problem("ports", "localhost is not this machine; torchrun's ranks could not meet: mend /etc/hosts")
    if is_free(DASHBOARD_PORT):
        yield ok("ports", f"processes can meet on 127.0.0.1; {DASHBOARD_PORT}, the dashboard's, is free")
    else:
        other = next((port for port in range(DASHBOARD_PORT + 1, DASHBOARD_PORT + 100) if is_free(port)), None)
        text = f"{DASHBOARD_PORT}, the dashboard's, is taken"
        yield note("ports", text, fix=f"hpo dashboard --port {other}" if other else None)


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _shared_memory(job: JobConfig, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    if not folder.is_dir():
        yield note("/dev/shm", "there is none on this system")
        return
    free = shutil.disk_usage(folder).free
    left = [path for path in folder.iterdir() if _is_left(path)]
    if free < FREE_SHM:
        is_needed = job.data.num_workers > 0 or len(detect_hardware().gpus) > 1
        text = f"{gib(free)} free: loaders (data.num_workers) and nccl may need more; in a container --shm-size=2g"
        tell = problem if is_needed else note
        yield tell("/dev/shm", text, fix="sudo mount -o remount,size=2g /dev/shm")
    if left:
        text = f"{len(left)} files of jobs that are gone ({gib(sum(path.stat().st_size for path in left))})"
        advice = "unless another container shares it"
        yield note("/dev/shm", f"{text}; remove them, {advice}", fix=shlex.join(["rm", *map(str, left)]))
    elif free >= FREE_SHM:
        yield ok("/dev/shm", f"{gib(free)} free, nothing left behind")


def _is_left(path: Path) -> bool:
    """A file as jobs have them there, old, ours, and of no process that this user may look at."""
    if not SHM_OF_JOBS.fullmatch(path.name):
        return False
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    is_old = time.time() - max(found.st_mtime, found.st_ctime) > SHM_AGE_S
    return is_old and found.st_uid == os.getuid() and not _is_mapped(path)


def _is_mapped(path: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(path) in maps.read_text(errors="replace"):
                return True
        except OSError:  # gone, or another user's
            continue
    return bool(processes_with(str(path)))


def _disk(root: Path) -> Iterator[Finding]:
    folder = existing(root)
    free, files = shutil.disk_usage(folder).free, os.statvfs(folder)
    biggest = f"du -sh {shlex.quote(str(root))}/* | sort -h"
    if not os.access(folder, os.W_OK):
        yield problem("disk", f"output.root {root} cannot be written", fix=f"chmod u+w {shlex.quote(str(folder))}")
    elif free < FREE_DISK:
        yield problem("disk", f"{gib(free)} free in output.root {root}: a checkpoint may not fit", fix=biggest)
    elif files.f_files and files.f_favail < FREE_FILES:
        yield problem("disk", f"room for {files.f_favail} more files in output.root {root}", fix=biggest)
    elif free < PLENTY_OF_DISK:
        yield note("disk", f"{gib(free)} free in output.root {root}", fix=biggest)
    else:
        yield ok("disk", f"{gib(free)} free in output.root {root}{'' if root.exists() else ', which is made by a job'}")


def _clock(root: Path) -> Iterator[Finding]:
    """A server of files stamps them by its own clock."""
    if not root.is_dir():
        yield note("clock", "there is nothing to compare it with before output.root exists")
        return
    with tempfile.NamedTemporaryFile(dir=root, prefix=".clock.") as file:
        file.write(b"\n")
        file.flush()
        ahead = time.time() - os.stat(file.name).st_mtime
    yield clock_finding(ahead, "the file system of output.root")


def clock_finding(ahead: float, whose: str) -> Finding:
    """This machine's clock is so many seconds `ahead`."""
    if abs(ahead) < SKEW_S:
        return ok("clock", f"as that of {whose}")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of {whose}: times in logs will not agree"
    return note("clock", f"{text} (leases go by the database's alone)", fix="timedatectl set-ntp true")
