"""Which way of running a job is recommended, and for which configuration of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo.definition import load_definition
from hpo.devices import Hardware
from hpo.errors import DeviceError, HpoError
from hpo.largest_job import _extremes as extremes
from hpo.largest_job import memory_key
from hpo.plan import Gpus, as_yaml, gpus_here, make_plan, name, parse_gpus, recommend
from hpo.plan import _changes as changes
from training.config import JobConfig
from training.errors import ConfigError
from training.run_dir import PlanRow

GIB = 2**30
GPUS = Gpus(count=4, memory_bytes=24 * GIB)
JOB = JobConfig()  # 32 samples a step: 8 for each of four ranks


def row(strategy: str, peak_gib: float, **values: Any) -> PlanRow:
    world_size = 1 if strategy == "none" else 4
    defaults: dict[str, Any] = {
        "strategy": strategy,
        "world_size": world_size,
        "gradient_checkpointing": False,
        "cpu_offload": False,
        "micro_batch_size": 32 // world_size,
        "num_micro_batches": 1,
        "parameters_bytes": 0,
        "gradients_bytes": 0,
        "optimizer_bytes": 0,
        "activations_bytes": int(peak_gib * GIB),
        "peak_bytes": int(peak_gib * GIB),
        "fits": peak_gib * GIB <= GPUS.usable_bytes,
    }
    return PlanRow(**{**defaults, **values})


@pytest.mark.parametrize(
    ("text", "count", "memory"), [("4x24GB", 4, 24 * 10**9), ("16GiB", 1, 16 * GIB), (" 2 x 80GB ", 2, 80 * 10**9)]
)
def test_gpus_are_a_number_and_a_size(text: str, count: int, memory: int) -> None:
    assert parse_gpus(text) == Gpus(count=count, memory_bytes=memory)


@pytest.mark.parametrize("text", ["", "4x", "x24GB", "0x24GB", "4", "four", "4x24", "-1x24GB"])
def test_other_words_for_gpus_are_refused(text: str) -> None:
    with pytest.raises(HpoError, match="must read like 4x24GB or 16GB"):
        parse_gpus(text)


def test_a_machine_without_a_gpu_needs_them_named() -> None:
    with pytest.raises(DeviceError, match="--gpus 4x24GB"):
        gpus_here(JOB, Hardware(gpus=(), cores=2))


def test_less_than_all_of_a_gpu_is_usable() -> None:
    assert 21 * GIB < GPUS.usable_bytes < 23 * GIB


def test_the_simplest_way_over_all_gpus_is_taken_when_it_fits() -> None:
    rows = [row("none", 3), row("ddp", 3), row("fsdp", 1)]
    chosen, reason = recommend(rows, GPUS)
    assert chosen == rows[1]
    assert reason.startswith("it leaves 19.24 GiB free; where an epoch takes seconds, one GPU")


def test_what_does_not_fit_is_passed_over_and_said() -> None:
    rows = [row("none", 90), row("ddp", 60), row("ddp", 30, gradient_checkpointing=True), row("fsdp", 20)]
    chosen, reason = recommend(rows, GPUS)
    assert chosen == rows[3]
    assert reason.startswith("ddp, checkpointing takes 30.00 GiB of ")


def test_micro_batches_that_leave_a_gpu_idle_are_the_last_resort() -> None:
    tiny = row("ddp", 10, micro_batch_size=1, num_micro_batches=8)
    whole = row("ddp", 20, gradient_checkpointing=True)
    assert recommend([tiny, whole], GPUS)[0] == whole
    assert recommend([tiny, row("fsdp", 90)], GPUS)[0] == tiny


def test_when_nothing_fits_the_shortage_is_said() -> None:
    chosen, reason = recommend([row("ddp", 60), row("fsdp", 30)], GPUS)
    assert chosen is None
    assert reason.startswith("even fsdp is 7.")


def test_one_gpu_takes_the_ways_of_one_gpu() -> None:
    only = row("none", 3)
    assert recommend([only], Gpus(count=1, memory_bytes=24 * GIB))[0] == only


def test_only_what_changes_is_to_be_written() -> None:
    assert changes(row("ddp", 3), JOB) == {"distributed.strategy": "ddp", "distributed.devices": 4}
    small = row("fsdp", 3, gradient_checkpointing=True, cpu_offload=True, micro_batch_size=4, num_micro_batches=2)
    assert as_yaml(changes(small, JOB)).splitlines() == [
        "distributed:",
        "  strategy: fsdp",
        "  devices: 4",
        "  cpu_offload: true",
        "training:",
        "  gradient_checkpointing: true",
        "  accumulate_grad_batches: auto",
        "  max_micro_batch_size: 4",
    ]
    assert changes(None, JOB) == {}
    assert name(small) == "fsdp, checkpointing, cpu offload"


STUDY = """
study: demo
config: {model: {hidden_size: 64}}
objective: {metric: loss, direction: minimize}
search_space:
  optimizer.lr: {float: [1e-4, 1e-1], log: true}
  model.hidden_size: {choice: [64, 256, 128]}
  data.max_length: {int: [16, 64]}
  training.gradient_checkpointing: {choice: [false, true]}
"""


def test_the_largest_numbers_and_every_other_choice_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(STUDY)
    found = list(extremes(load_definition("demo.yaml", environment="local")))
    assert [(each["model.hidden_size"], each["data.max_length"]) for each in found] == [(256, 64)] * 2
    assert {each["training.gradient_checkpointing"] for each in found} == {False, True}


def test_memory_does_not_depend_on_the_learning_rate_but_on_the_batch() -> None:
    assert memory_key(JOB) == memory_key(JOB.with_values({"optimizer.lr": 1.0, "training.epochs": 9, "seed": 5}))
    for key, value in (("training.global_batch_size", 64), ("optimizer.name", "sgd"), ("model.hidden_size", 8)):
        assert memory_key(JOB) != memory_key(JOB.with_values({key: value}))


def test_a_job_that_cannot_be_built_is_told_by_its_mistake() -> None:
    job = JOB.with_values({"model.pretrained": "package:nowhere/at/all"})
    with pytest.raises(ConfigError, match="^model.pretrained: .*no package nowhere is installed"):
        make_plan(job, GPUS)


def test_gpus_that_cannot_share_the_batch_are_planned_for_as_one() -> None:
    small = {"task": "image_classification", "data.name": "digits", "model": {"architecture": "mlp", "hidden_size": 8}}
    plan = make_plan(JOB.with_values(small), Gpus(count=3, memory_bytes=24 * GIB))
    assert {row.world_size for row in plan.rows} == {1}
    assert plan.reason.endswith("32 cannot be shared exactly by 3 ranks; nearest: 30 or 33")
    assert plan.changes == {"distributed.strategy": "none"}
