"""Which devices a job gets, and what is said when it is not what was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpo import devices
from hpo.devices import Hardware, Placement, detect_hardware, place
from hpo.errors import DeviceError
from hpo.launchers.processes import command_line, environment
from training.config import DistributedConfig
from training.run_dir import RunDir

CPU = Hardware(gpus=(), cores=8)
ONE_GPU = Hardware(gpus=("0",), cores=8)
FOUR_GPUS = Hardware(gpus=("0", "1", "2", "3"), cores=8)


FALLS_BACK = "requires multiple devices, falling back to"


def said(placement: Placement) -> list[str]:
    assert all(finding.advice for finding in placement.notices)
    return [f"{finding.key}: {finding.message}" for finding in placement.notices]


def placed(hardware: Hardware, **values: Any) -> Placement:
    return place(DistributedConfig.model_validate(values), hardware)


# Which devices


@pytest.mark.parametrize(
    ("hardware", "values", "world_size", "gpus"),
    [
        (CPU, {}, 1, ()),
        (CPU, {"devices": 2}, 2, ()),
        (CPU, {"devices": 8}, 8, ()),
        (CPU, {"devices": 1}, 1, ()),
        (ONE_GPU, {}, 1, ("0",)),
        (FOUR_GPUS, {}, 4, ("0", "1", "2", "3")),
        (FOUR_GPUS, {"strategy": "ddp"}, 4, ("0", "1", "2", "3")),
        (FOUR_GPUS, {"strategy": "none"}, 1, ("0",)),
        (FOUR_GPUS, {"devices": 2}, 2, ("0", "1")),
        (FOUR_GPUS, {"devices": [3, 1]}, 2, ("3", "1")),
        (FOUR_GPUS, {"devices": [2]}, 1, ("2",)),
        (FOUR_GPUS, {"accelerator": "cuda"}, 4, ("0", "1", "2", "3")),
        (FOUR_GPUS, {"accelerator": "cpu"}, 1, ()),
        (FOUR_GPUS, {"accelerator": "cpu", "devices": 2}, 2, ()),
        (CPU, {"devices": [0, 1]}, 2, ()),
        (Hardware(gpus=("GPU-aa", "GPU-bb"), cores=4), {"devices": [1]}, 1, ("GPU-bb",)),
    ],
)
def test_a_job_gets_the_devices_it_asks_for_and_nothing_needs_saying(
    hardware: Hardware, values: dict[str, Any], world_size: int, gpus: tuple[str, ...]
) -> None:
    placement = placed(hardware, **values)
    assert (placement.world_size, placement.gpus, placement.notices) == (world_size, gpus, ())


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (4, 4, 1)])
def test_ranks_share_the_cores(cores: int, ranks: int, threads: int) -> None:
    assert placed(Hardware(gpus=(), cores=cores), devices=ranks).threads_per_rank == threads


def test_only_gpus_that_all_have_it_multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_ampere", lambda gpu: gpu != "0")  # a T4 beside newer ones
    assert FOUR_GPUS.has_bfloat16(("1", "2"))
    assert not FOUR_GPUS.has_bfloat16(("0", "1"))
    assert not CPU.has_bfloat16(())


def test_every_rank_has_a_thread_when_there_are_more_gpus_than_cores() -> None:
    assert placed(Hardware(gpus=("0", "1", "2"), cores=2)).threads_per_rank == 1


# What is said


def test_more_gpus_than_there_are_is_clamped_and_said() -> None:
    placement = placed(FOUR_GPUS, devices=6)
    assert placement.gpus == FOUR_GPUS.gpus
    assert said(placement) == ["distributed.devices: 6 GPUs were asked for, but only 4 exist; going on with those"]


def test_more_ranks_than_there_are_cores_is_clamped_and_said() -> None:
    placement = placed(CPU, devices=9)
    assert placement.world_size == 8
    assert said(placement) == ["distributed.devices: 9 CPU cores were asked for, but only 8 exist; going on with those"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("values", [{}, {"devices": 1}, {"devices": [0]}])
def test_several_devices_strategies_on_one_gpu_fall_back_and_say_so(values: dict[str, Any], strategy: str) -> None:
    placement = placed(ONE_GPU, strategy=strategy, **values)
    assert (placement.world_size, placement.gpus) == (1, ("0",))
    assert said(placement) == [f"distributed.strategy: {strategy.upper()} {FALLS_BACK} single-GPU training"]


@pytest.mark.parametrize("values", [{}, {"devices": 1}])
def test_ddp_on_one_cpu_falls_back_and_says_so(values: dict[str, Any]) -> None:
    placement = placed(CPU, strategy="ddp", **values)
    assert (placement.world_size, placement.gpus) == (1, ())
    assert said(placement) == [f"distributed.strategy: DDP {FALLS_BACK} single-CPU training"]


def test_ddp_clamped_to_one_device_says_both() -> None:
    assert said(placed(ONE_GPU, strategy="ddp", devices=2)) == [
        "distributed.devices: 2 GPUs were asked for, but only 1 exist; going on with those",
        f"distributed.strategy: DDP {FALLS_BACK} single-GPU training",
    ]


def test_nccl_without_a_gpu_becomes_gloo_and_is_said() -> None:
    assert said(placed(CPU, backend="nccl")) == ["distributed.backend: is nccl, which is for NVIDIA GPUs; gloo is used"]
    assert said(placed(FOUR_GPUS, backend="nccl")) == []


@pytest.mark.parametrize("strategy", ["auto", "none"])
def test_one_device_needs_no_word_unless_ddp_was_asked_for(strategy: str) -> None:
    assert placed(ONE_GPU, strategy=strategy).notices == placed(CPU, strategy=strategy).notices == ()


def test_a_device_listed_twice_is_used_once_and_said() -> None:
    placement = placed(FOUR_GPUS, devices=[1, 0, 1])
    assert placement.gpus == ("1", "0")
    assert said(placement) == ["distributed.devices: lists a device twice; going on with [1, 0]"]


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp"])
def test_several_machines_have_as_many_ranks_each(strategy: str) -> None:
    placement = placed(FOUR_GPUS, strategy=strategy, num_nodes=3, rendezvous="node0:29400")
    assert (placement.world_size, placement.num_nodes, placement.notices) == (12, 3, ())
    one_each = placed(ONE_GPU, strategy=strategy, num_nodes=2, rendezvous="node0:29400")
    assert (one_each.world_size, one_each.notices) == (2, ())


# What cannot be


def test_one_process_on_several_machines_is_an_error() -> None:
    with pytest.raises(DeviceError, match="strategy none is one process"):
        placed(FOUR_GPUS, strategy="none", num_nodes=2)


def test_several_machines_must_know_where_to_meet() -> None:
    with pytest.raises(DeviceError, match="distributed.rendezvous is needed for 2 machines: host:port of the first"):
        placed(FOUR_GPUS, num_nodes=2)


def test_cuda_without_a_gpu_is_an_error_with_the_way_out() -> None:
    with pytest.raises(DeviceError) as caught:
        placed(CPU, accelerator="cuda")
    assert str(caught.value) == "distributed.accelerator is cuda, but no GPU is visible; set it to auto or cpu"


@pytest.mark.parametrize(
    ("hardware", "values", "message"),
    [
        (FOUR_GPUS, {"devices": [0, 4, 7]}, "distributed.devices lists [4, 7], but there are only 4 GPUs"),
        (CPU, {"devices": [8]}, "distributed.devices lists [8], but there are only 8 CPU cores"),
    ],
)
def test_a_listed_device_that_does_not_exist_is_an_error(
    hardware: Hardware, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeviceError) as caught:
        placed(hardware, **values)
    assert str(caught.value) == message


# What this machine has


@pytest.mark.parametrize(
    ("mask", "count", "gpus"),
    [
        (None, 3, ("0", "1", "2")),
        (None, 0, ()),
        ("", 3, ()),
        ("-1", 3, ()),
        ("1", 3, ("1",)),
        ("2,0", 3, ("2", "0")),
        (" 2 , 0 ", 3, ("2", "0")),
        ("0,-1,1", 3, ("0",)),
        ("0,7,1", 3, ("0",)),
        ("0,x,1", 3, ("0",)),
        ("7", 3, ()),
        ("0", 0, ()),
        ("GPU-8932f937-d72c,1", 3, ("GPU-8932f937-d72c", "1")),
        ("MIG-GPU-8932f937/1/0", 3, ("MIG-GPU-8932f937/1/0",)),
        ("GPU-8932f937-d72c", 0, ()),
    ],
)
def test_the_mask_of_cuda_says_which_gpus_are_visible(
    monkeypatch: pytest.MonkeyPatch, mask: str | None, count: int, gpus: tuple[str, ...]
) -> None:
    monkeypatch.setattr(devices, "_count_gpus", lambda: count)
    if mask is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert detect_hardware().gpus == gpus


@pytest.mark.parametrize(("mask", "order"), [(None, "PCI_BUS_ID"), ("1,0", None)])
def test_a_job_counts_gpus_as_nvml_unless_the_user_counted_them(
    monkeypatch: pytest.MonkeyPatch, mask: str | None, order: str | None
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    placement = Placement(world_size=2, gpus=("1", "0"), threads_per_rank=1)
    assert environment(placement, "job").get("CUDA_DEVICE_ORDER") == order
    assert environment(placement, "job")["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert command_line(RunDir(Path("a run")), placement).startswith("env CUDA_VISIBLE_DEVICES=1,0 ")


def test_only_the_cores_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7})
    assert detect_hardware().cores == 3


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert devices._count_gpus() == 0


def test_the_driver_is_closed_after_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    calls: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    assert devices._count_gpus() == 2
    assert calls == ["init", "shutdown"]


def test_one_process_of_several_devices_asked_for_is_said() -> None:
    placement = place(DistributedConfig.model_validate({"devices": [2, 0], "strategy": "none"}), FOUR_GPUS)
    assert placement.gpus == ("2",)
    assert said(placement) == ["distributed.strategy: is none, so one of 2 devices is used"]
