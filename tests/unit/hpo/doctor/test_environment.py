"""What ``hpo doctor`` finds on a machine: its torch, devices, ports, shared memory, file systems and clock."""

from __future__ import annotations

import contextlib
import mmap
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo import device_locks
from hpo.doctor import environment
from hpo.doctor.environment import clock_finding, cuda_findings, environment_findings, probe_torch, torch_findings
from hpo.doctor.filesystem import kind_of, network_kind
from hpo.doctor.finding import Level
from hpo.doctor.storage import opened
from hpo.ledger import LedgerStorage
from tests.unit.hpo.doctor.patients import PROBE, started, worst
from training.config import JobConfig


def test_a_file_system_is_that_of_the_longest_mount_point() -> None:
    mounts = (
        "rootfs / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/sda /home/me/my\\040disk xfs rw 0 0\n"
        "//server/share /mnt cifs rw 0 0\n"
        "drive /content/drive fuse.drive rw 0 0\n"
        "tmp /mnt tmpfs rw 0 0\n"
    )
    paths = ("/data", "/home/me/runs", "/home/me/my disk/runs", "/home/me/my diskette", "/mnt/x", "/content/drive/x")
    assert [kind_of(Path(path), mounts) for path in paths] == ["ext4", "nfs4", "xfs", "nfs4", "tmpfs", "fuse.drive"]


def test_a_network_file_system_is_a_problem_for_sqlite(
    sqlite: LedgerStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = folder / "mounts"
    mounts.write_text(f"rootfs / ext4 rw 0 0\nserver:/x {folder}/runs nfs rw 0 0\n")
    monkeypatch.setattr("hpo.doctor.filesystem.MOUNTS", mounts)
    assert (network_kind(folder), network_kind(folder / "runs" / "not there yet")) == (None, "nfs")
    database, found = opened(sqlite.url, "")
    assert [(each.check, each.level) for each in worst(found)] == [("file system", Level.PROBLEM)]
    assert database is not None
    database.engine.dispose()


def test_a_device_that_a_dead_process_has_locked_is_found_with_who_holds_on_to_it() -> None:
    path = device_locks.lock_path(device_locks.lock_folder(), "core-3")
    program = (
        "import fcntl, os, subprocess, sys, time; from pathlib import Path; from hpo import device_locks\n"
        "lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); device_locks.sign(Path(sys.argv[1]))\n"
        "heir = subprocess.Popen(['sleep', '600'], pass_fds=[lock], stdout=subprocess.DEVNULL)\n"
        "print(heir.pid, flush=True); time.sleep(600)"
    )
    with started("-c", program, str(path)) as (process, line):
        heir = int(line)
        [alive] = environment._devices()
        assert alive.level is Level.OK and alive.text.startswith(f"1 leased, by pid {process.pid} (-c ")
        process.kill()
        process.wait()
        [found] = worst(environment._devices())
        assert found.level is Level.PROBLEM
        assert f"core-3 is still locked for pid {process.pid}" in found.text
        assert found.fix == f"kill {heir}"
        subprocess.run(str(found.fix), shell=True, check=True)
    deadline = time.monotonic() + 5
    while worst(environment._devices()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert worst(environment._devices()) == []


def test_a_device_that_a_process_of_another_container_has_locked_is_in_use() -> None:
    path = device_locks.lock_path(device_locks.lock_folder(), "core-3")
    program = (
        "import fcntl, os, sys, time; lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); os.write(lock, b'pid 4194305 (hpo sweep)'); print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    with contained("-c", program, str(path)):
        [found] = environment._devices()
        assert (found.level, found.text[:32]) == (Level.OK, "core-3 is leased by pid 4194305 ")


@contextlib.contextmanager
def contained(*arguments: str) -> Iterator[None]:
    """A Python process in which process ids are other ones."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.skip("this user may not make a namespace of processes")
            yield
        finally:
            process.kill()


def test_a_folder_of_leases_that_others_can_write_to_is_a_problem(folder: Path) -> None:
    (folder / "leases").mkdir(mode=0o777)
    (folder / "leases").chmod(0o777)
    [found] = environment._devices()
    assert found.level is Level.PROBLEM
    assert "can be written by other users" in found.text


def test_a_port_that_is_taken_comes_with_one_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(environment, "DASHBOARD_PORT", server.getsockname()[1])
        [found] = worst(environment._ports())
        assert found.level is Level.NOTE
        assert environment.is_free(int(str(found.fix).rpartition(" ")[2]))


def test_shared_memory_of_gone_jobs_is_found_and_that_in_use_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "SHM_AGE_S", -1.0)
    for name in ("torch_4711_12_0", "torch_4712_12_0", "nccl-Ab12Cd", "PostgreSQL.1"):
        (folder / name).write_bytes(bytes(4096))
    with (folder / "torch_4712_12_0").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    [found] = worst(environment._shared_memory(JobConfig(), folder))
    mapped.close()
    assert found.text.startswith("2 files of jobs that are gone")
    assert set(str(found.fix).split()) == {"rm", f"{folder}/torch_4711_12_0", f"{folder}/nccl-Ab12Cd"}


def test_a_full_disk_and_one_that_cannot_be_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FREE_DISK", 2**62)
    [found] = environment._disk(folder / "runs")
    assert (found.level, found.fix) == (Level.PROBLEM, f"du -sh {folder}/runs/* | sort -h")


def test_clocks_that_differ_are_told() -> None:
    assert clock_finding(0.5, "the database").level is Level.OK
    assert clock_finding(-61.2, "the database").text.startswith("61 s behind that of the database")


@pytest.mark.parametrize(
    ("changes", "newest", "capability", "wrong"),
    [
        ({}, 12, 90, []),
        ({}, 13, 86, []),
        ({}, 12, 100, []),  # translated by the driver
        ({}, 12, 75, ["no kernels for GPU 0 of compute capability 7.5"]),
        ({}, 11, 90, ["needs a driver for CUDA 12.8, and this one is for CUDA 11"]),
        ({"sees": 0}, 12, 90, ["torch can open 0 of 2 GPUs"]),
        ({"cuda": None, "version": "2.13.0+cpu"}, 12, 90, ["built for the CPU alone"]),
        ({"nccl": None}, 12, 90, ["2 GPUs cannot work on one job"]),
    ],
)
def test_a_torch_that_does_not_go_with_the_gpus_is_a_problem(
    changes: dict[str, Any], newest: int, capability: int, wrong: list[str]
) -> None:
    found = worst(cuda_findings({**PROBE, **changes}, 2, newest, {"0": capability}))
    assert len(found) == len(wrong)
    for each, text in zip(found, wrong, strict=True):
        assert each.level is Level.PROBLEM and text in each.text


def test_a_torch_that_is_broken_or_old_is_a_problem() -> None:
    broken = probe_torch("raise ImportError('libcudart.so.12: cannot open shared object file')")
    [found] = torch_findings(broken)
    assert found.text == "cannot be imported: ImportError: libcudart.so.12: cannot open shared object file"
    assert "-m pip install" in str(found.fix)
    assert worst(torch_findings(PROBE)) == []
    assert [each.check for each in worst(torch_findings({**PROBE, "version": "2.9.1", "gloo": False}))] == [
        "torch",
        "gloo",
    ]


def test_the_environment_of_a_job_is_looked_at_without_writing_anything(folder: Path, fast: None) -> None:
    before = sorted(folder.rglob("*"))
    checks = [each.check for each in environment_findings(JobConfig())]
    assert checks[:2] == ["python", "torch"] and {"disk", "clock", "ports", "devices"} <= set(checks)
    assert [path for path in sorted(folder.rglob("*")) if path not in before and "leases" not in path.parts] == []
