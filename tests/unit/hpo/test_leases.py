"""A job has its devices to itself among all processes of a machine, and who has to wait hears for whom."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from hpo import device_locks, gpu_processes, leases
from hpo.device_demand import Demand, left_by
from hpo.devices import Hardware, Placement, place
from hpo.errors import DeviceError
from hpo.leases import LeaseCancelled, lease
from hpo.search_space import VOLATILE
from training.config import DistributedConfig
from training.job_processes import PARENT_PID

CHECKOUT = Path(__file__).parents[3]
LEASING = str(Path(__file__).with_name("leasing.py"))
FOUR_CORES = Hardware(gpus=(), cores=4)
FOUR_GPUS = Hardware(gpus=("0", "1", "2", "3"), cores=4)
STRANGER = 1
"""A process that is always there, and leases nothing."""


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores whose numbers are not those of their places, and no lease on any."""
    monkeypatch.setenv("HPO_LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7})
    monkeypatch.setattr(
        psutil.Process, "parents", lambda self: list(filter(None, [self.parent()]))
    )  # less the STRANGER


class FakeNvml(ModuleType):
    """What the code asks of NVML, about GPUs "0", "1", ... with UUIDs "GPU-0", "GPU-1", ..."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.pids: dict[str, list[int]] = {}
        """By UUID, the processes that compute there."""
        self.asked = 0
        self.is_lost = False

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if len(uuid) != len("GPU-0"):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self.asked += 1
        if self.is_lost:
            raise self.NVMLError("GPU is lost")
        return [SimpleNamespace(pid=pid) for pid in self.pids.get(handle, [])]


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TOLD_AFTER_S", 0.0)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def config_of(**values: Any) -> DistributedConfig:
    return DistributedConfig.model_validate(values)


def unexpected(text: str) -> None:
    raise AssertionError(text)


@contextlib.contextmanager
def leased(hardware: Hardware, **values: Any) -> Iterator[Placement]:
    """A lease that is to be had without waiting."""
    with lease(config_of(**values), hardware, on_wait=unexpected, is_cancelled=lambda: False) as placement:
        yield placement


def told(hardware: Hardware, **values: Any) -> str:
    """What a job hears that has to wait; it gives up after asking three times."""
    heard: list[str] = []
    answers = iter([False, False, False, True])
    with pytest.raises(LeaseCancelled):
        with lease(config_of(**values), hardware, on_wait=heard.append, is_cancelled=lambda: next(answers)):
            raise AssertionError("it got devices that are not free")
    (text,) = heard
    return text


def skipped(placement: Placement) -> list[str]:
    return [finding.message for finding in placement.notices if finding.key == "distributed.devices"]


# CPU cores


@pytest.mark.parametrize(
    ("values", "cores"),
    [
        ({}, (2, 3, 5, 7)),
        ({"threads_per_rank": 1}, (2,)),
        ({"devices": 2, "threads_per_rank": 1}, (2, 3)),
        ({"devices": 2}, (2, 3, 5, 7)),
        ({"devices": 3}, (2, 3, 5)),
        ({"threads_per_rank": 9}, (2, 3, 5, 7)),
        ({"devices": [3, 1], "threads_per_rank": 1}, (3, 7)),
        ({"devices": [3], "threads_per_rank": 2}, (2, 7)),
        ({"devices": [3, 3, 1], "strategy": "none", "threads_per_rank": 1}, (7,)),
        ({"devices": 2, "threads_per_rank": 1, "num_nodes": 2, "rendezvous": "node0:29400"}, (2, 3)),
    ],
)
def test_a_job_on_a_cpu_has_a_core_for_each_of_its_threads_on_this_machine(
    values: dict[str, Any], cores: tuple[int, ...]
) -> None:
    with leased(FOUR_CORES, **values) as placement:
        assert placement.cores == cores


def test_but_for_its_cores_a_lease_is_what_place_says() -> None:
    config = config_of(devices=9, strategy="ddp", backend="nccl")
    wish = place(config, FOUR_CORES)
    assert len(wish.notices) == 2
    with leased(FOUR_CORES, **config.model_dump()) as placement:
        assert (placement.notices, placement.world_size) == (wish.notices, wish.world_size)
        assert placement.threads_per_rank == wish.threads_per_rank


def test_two_jobs_have_no_core_in_common() -> None:
    one = {"devices": 2, "threads_per_rank": 1}
    with leased(FOUR_CORES, **one) as first, leased(FOUR_CORES, **one) as second:
        assert sorted(first.cores + second.cores) == [2, 3, 5, 7]


def test_cores_are_free_again_when_the_job_is_over_however_it_ends() -> None:
    with pytest.raises(KeyboardInterrupt), leased(FOUR_CORES):
        raise KeyboardInterrupt
    with leased(FOUR_CORES) as placement:
        assert len(placement.cores) == 4


# Waiting


def test_who_waits_hears_once_for_what_and_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hpo", "sweep", "--storage=postgresql://me:secret@host/db", "bert\ncv"])
    with leased(FOUR_CORES, devices=3, threads_per_rank=1):
        assert told(FOUR_CORES, devices=2, threads_per_rank=1) == (
            f"waiting for 2 of CPU cores 2, 3, 5, 7: pid {os.getpid()}"
            " (hpo sweep --storage=postgresql://***@host/db 'bert cv') holds CPU cores 2, 3, 5;"
            " distributed.share_devices: true takes what is in use"
        )


def test_who_waits_holds_nothing() -> None:
    with leased(FOUR_CORES, threads_per_rank=2):
        told(FOUR_CORES)
        with leased(FOUR_CORES, threads_per_rank=2) as placement:
            assert placement.cores == (5, 7)


def test_an_explicit_list_waits_for_exactly_those() -> None:
    with leased(FOUR_CORES, devices=[1], threads_per_rank=1):
        assert told(FOUR_CORES, devices=[0, 1], threads_per_rank=1).startswith("waiting for CPU cores 2, 3: ")
        with leased(FOUR_CORES, devices=[0, 2], threads_per_rank=1) as placement:
            assert placement.cores == (2, 5)


def test_a_job_that_is_called_off_before_it_asks_gets_nothing() -> None:
    with pytest.raises(LeaseCancelled):
        with lease(config_of(), FOUR_CORES, on_wait=unexpected, is_cancelled=lambda: True):
            raise AssertionError


def test_who_waits_longer_is_served_before_the_holder_comes_again() -> None:
    order, is_waiting, holder_waits = [], threading.Event(), threading.Event()

    def wait() -> None:
        with lease(config_of(), FOUR_CORES, on_wait=lambda text: is_waiting.set(), is_cancelled=lambda: False):
            order.append("who waited")
            assert holder_waits.wait(60)

    waiter = threading.Thread(target=wait)
    with leased(FOUR_CORES):
        waiter.start()
        assert is_waiting.wait(60)
    with lease(config_of(), FOUR_CORES, on_wait=lambda text: holder_waits.set(), is_cancelled=lambda: False):
        order.append("holder")
        holder_waits.set()
    waiter.join(60)
    assert order == ["who waited", "holder"]


def test_what_an_earlier_one_is_going_to_get_is_not_taken_but_the_rest_is() -> None:
    pool = ("a", "b", "c")
    two, listed, other = (
        Demand(pool=pool, count=2),
        Demand(pool=("b",), listed=("b",), count=1),
        Demand(pool=(), count=0),
    )
    assert left_by([two], ["a", "c"], []) == set()
    assert left_by([listed, other], pool, []) == {"a", "c"}
    assert left_by([listed, two], pool, []) == set()


def test_nothing_is_kept_for_one_who_waits_for_strangers() -> None:
    pool = ("a", "b")
    assert left_by([Demand(pool=pool, listed=pool, count=2)], ["a"], ["b"]) == {"a"}
    assert left_by([Demand(pool=pool, count=2, is_modest=True)], ["a"], ["b"]) == set()


def test_a_demand_is_the_same_after_it_was_written_down() -> None:
    demand = Demand(pool=("a", "b"), listed=("b",), count=2, is_modest=True)
    assert Demand.from_line(demand.to_line()) == demand


# Real processes


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen([sys.executable, LEASING, *arguments], stdout=subprocess.PIPE, text=True, env=environment)


def heard_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    return Hardware(gpus=(), cores=3)


def test_the_devices_of_a_killed_process_are_free(three_cores: Hardware) -> None:
    with start("hold") as holder:
        try:
            assert heard_from(holder) == "leased"
            assert f"pid {holder.pid} (leasing.py hold) holds CPU cores 0, 1, 2" in told(three_cores)
            kill = {"on_wait": lambda text: holder.kill(), "is_cancelled": lambda: False}
            with lease(config_of(), three_cores, **kill) as placement:
                assert placement.cores == (0, 1, 2)
        finally:
            holder.kill()


def test_nothing_is_kept_for_a_killed_process_that_waited(three_cores: Hardware) -> None:
    with leased(three_cores, threads_per_rank=1), start("wait") as waiter:
        try:
            assert heard_from(waiter).startswith("waiting for CPU cores 0, 1, 2: ")
            said = told(three_cores, devices=2, threads_per_rank=1)
            assert f"pid {waiter.pid} (leasing.py wait) waits since before" in said
        finally:
            waiter.kill()
        waiter.wait()
        with leased(three_cores, devices=2, threads_per_rank=1) as placement:
            assert placement.cores == (1, 2)
    assert len(list(device_locks.lock_folder().glob("*.waiting"))) <= 1, "what the dead leave is swept"


def test_processes_that_ask_at_once_never_share_a_device(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    racers = [start("race", str(marks), "60") for _ in range(3)]
    assert [process.communicate(timeout=240)[0].strip() for process in racers] == ["0", "0", "0"]


# GPUs


def test_a_number_takes_any_gpus_that_are_free(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS, devices=[1]), leased(FOUR_GPUS, devices=2) as placement:
        assert (placement.gpus, placement.cores, placement.notices) == (("0", "2"), (), ())


def test_a_list_keeps_its_order(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS, devices=[3, 1]) as placement:
        assert placement.gpus == ("3", "1")


@pytest.mark.parametrize("devices", ["auto", 4, 2, [0, 1]])
def test_one_process_takes_one_gpu(nvml: FakeNvml, devices: object) -> None:
    config = config_of(devices=devices, strategy="none")
    with leased(FOUR_GPUS, **config.model_dump()) as placement:
        assert placement == place(config, FOUR_GPUS)


def test_more_gpus_than_there_are_are_all_and_that_is_said(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS, devices=6) as placement:
        assert placement == place(config_of(devices=6), FOUR_GPUS)


def test_a_gpu_is_the_same_by_number_and_by_uuid(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS, devices=[1]):
        assert told(Hardware(gpus=("GPU-1",), cores=4)).startswith(f"waiting for GPU GPU-1: pid {os.getpid()} (")
        with leased(Hardware(gpus=("GPU-1", "GPU-3"), cores=4), devices=1) as placement:
            assert placement.gpus == ("GPU-3",)


def test_a_gpu_that_nvml_does_not_know_is_an_error_with_the_way_out(nvml: FakeNvml) -> None:
    with pytest.raises(DeviceError, match="GPU GPU-12345 cannot be leased.*distributed.share_devices: true"):
        with leased(Hardware(gpus=("GPU-12345",), cores=4)):
            raise AssertionError


def test_auto_goes_on_without_gpus_that_strangers_use_and_says_so(nvml: FakeNvml) -> None:
    nvml.pids = {"GPU-1": [STRANGER, STRANGER]}
    with leased(FOUR_GPUS) as placement:
        assert (placement.gpus, placement.world_size) == (("0", "2", "3"), 3)
        assert skipped(placement) == [f"GPU 1 is busy with process 1 ({psutil.Process(1).name()}), skipped"]


def test_ddp_that_is_left_one_gpu_falls_back_and_says_both(nvml: FakeNvml) -> None:
    nvml.pids = {f"GPU-{index}": [STRANGER] for index in range(3)}
    with leased(FOUR_GPUS, strategy="ddp") as placement:
        assert (placement.gpus, placement.world_size, placement.threads_per_rank) == (("3",), 1, 4)
        assert "falling back to single-GPU" in placement.notices[0].message
        assert len(skipped(placement)) == 3


def test_a_number_takes_gpus_that_nobody_uses_and_says_which_it_skipped(nvml: FakeNvml) -> None:
    nvml.pids = {"GPU-0": [STRANGER]}
    with leased(FOUR_GPUS, devices=3) as placement:
        assert placement.gpus == ("1", "2", "3")
        assert len(skipped(placement)) == 1


@pytest.mark.parametrize("devices", ["auto", 4, [1]])
def test_a_job_waits_for_strangers_where_too_few_gpus_are_left(nvml: FakeNvml, devices: object) -> None:
    hardware = FOUR_GPUS if devices != "auto" else Hardware(gpus=("1",), cores=4)
    nvml.pids = {"GPU-1": [STRANGER]}
    assert f"GPU 1 is busy with process 1 ({psutil.Process(1).name()})" in told(hardware, devices=devices)


def test_auto_waits_for_a_gpu_that_is_leased(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS, devices=[2]):
        assert told(FOUR_GPUS).startswith("waiting for GPUs 0, 1, 2, 3: ")


def test_a_process_and_those_it_descends_from_are_no_strangers(nvml: FakeNvml) -> None:
    nvml.pids = {"GPU-1": [os.getpid()], "GPU-2": [os.getppid()]}
    with leased(FOUR_GPUS) as placement:
        assert placement.gpus == FOUR_GPUS.gpus


def test_a_driver_that_does_not_tell_who_computes_keeps_no_job_from_it(nvml: FakeNvml) -> None:
    nvml.is_lost = True
    with leased(FOUR_GPUS) as placement:
        assert placement.gpus == FOUR_GPUS.gpus


def test_shared_devices_are_taken_whoever_has_them(nvml: FakeNvml) -> None:
    nvml.pids = {"GPU-0": [STRANGER]}
    with leased(FOUR_GPUS, devices=[1]), leased(FOUR_GPUS, share_devices=True) as placement:
        assert placement == place(config_of(), FOUR_GPUS)
        with leased(FOUR_GPUS, devices=[2]):
            pass  # and they are not kept from anyone
    with leased(FOUR_CORES), leased(FOUR_CORES, share_devices=True) as placement:
        assert placement.cores == ()


# When a job is over


def test_a_lease_ends_when_the_job_has_left_its_gpus(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    looks = []

    def leave(seconds: float) -> None:
        looks.append(told(FOUR_GPUS, devices=[0]) if not looks else "")
        nvml.pids = {}

    with leased(FOUR_GPUS, devices=[0]):
        nvml.pids = {"GPU-0": [ended.pid]}
        monkeypatch.setattr(gpu_processes, "time", SimpleNamespace(sleep=leave, monotonic=lambda: 0.0))
    assert len(looks) == 1


def test_a_job_that_does_not_leave_is_told(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = itertools.chain([0.0, 9.0], itertools.repeat(11.0)), list[str]()
    fake = SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: next(clock))
    monkeypatch.setattr(gpu_processes, "time", fake)
    left = [sys.executable, "-c", "input()"]
    with subprocess.Popen(left, stdin=subprocess.PIPE, env={**os.environ, PARENT_PID: str(os.getpid())}) as job:
        with lease(config_of(), FOUR_GPUS, on_wait=heard.append, is_cancelled=lambda: False):
            nvml.pids = {"GPU-2": [job.pid]}
        job.kill()
    assert len(heard) == 1
    assert heard[0].startswith(f"GPU 2 still shows process {job.pid} (python")
    assert heard[0].endswith(", 10 s after the job's end")
    nvml.pids = {}
    with leased(FOUR_GPUS):
        pass


def test_a_stranger_who_came_meanwhile_is_not_waited_for(nvml: FakeNvml) -> None:
    with leased(FOUR_GPUS):
        nvml.pids = {"GPU-2": [STRANGER, os.getpid()]}


# The folder of the locks


def test_the_folder_of_the_locks_is_private(tmp_path: Path) -> None:
    with leased(FOUR_CORES):
        assert stat.S_IMODE((tmp_path / "leases").stat().st_mode) == 0o700


def test_the_folder_of_the_locks_is_one_for_the_user_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_locks.tempfile, "gettempdir", lambda: str(tmp_path))
    assert device_locks.lock_folder() == tmp_path / "leases"
    monkeypatch.delenv("HPO_LEASES")
    assert device_locks.lock_folder() == tmp_path / f"hpo-devices-{os.getuid()}"


def test_the_folder_of_another_user_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid()
    (tmp_path / "hpo-devices-12345").mkdir(mode=0o700)
    monkeypatch.setattr(device_locks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.delenv("HPO_LEASES")
    with pytest.raises(DeviceError, match=rf"hpo-devices-12345, .* belongs to another user \({user}\)"):
        device_locks.lock_folder()


def test_a_folder_that_others_could_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DeviceError, match="can be written by other users; set HPO_LEASES to a folder of your own"):
        device_locks.lock_folder()


@pytest.mark.parametrize("target", [".", "nowhere"])
def test_a_symbolic_link_to_a_folder_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "leases").symlink_to(target)
    with pytest.raises(DeviceError, match="is a symbolic link"):
        device_locks.lock_folder()


def test_a_file_is_no_folder_of_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").touch()
    with pytest.raises(DeviceError, match="is not a folder"):
        device_locks.lock_folder()
    monkeypatch.setenv("HPO_LEASES", str(tmp_path / "leases" / "below"))
    with pytest.raises(DeviceError, match="cannot be used"):
        device_locks.lock_folder()


def test_a_study_may_go_on_with_shared_devices() -> None:
    assert "distributed.share_devices".startswith(VOLATILE)
