"""What is said before anything runs: devices, batches that cannot be shared, missing files and modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpo import preflight as module
from hpo.definition import StudyDefinition, load_definition
from hpo.devices import Hardware, Placement
from hpo.errors import DeviceError
from hpo.preflight import preflight
from training.errors import ConfigError

STUDY = """\
study: demo
objective: {metric: accuracy, direction: maximize}
search_space:
  optimizer.lr: {float: [0.001, 0.1], log: true}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, on a machine with two GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "detect_hardware", lambda: Hardware(gpus=("0", "1"), cores=4))
    (tmp_path / "config").mkdir()
    (tmp_path / "config/train.yaml").write_text(
        "data:\n  name: digits\ntraining:\n  global_batch_size: 32\ndistributed:\n  strategy: ddp\n"
    )
    return tmp_path


def load(text: str = "", *settings: str) -> StudyDefinition:
    Path("demo.yaml").write_text(STUDY + text)
    return load_definition("demo.yaml", environment="local", settings=settings)


def problems(text: str = "", *settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight(load(text, *settings))
    return str(caught.value).splitlines()


def test_a_study_that_can_run_gets_its_placement() -> None:
    assert preflight(load()) == Placement(world_size=2, gpus=("0", "1"), threads_per_rank=2)


def test_jobs_get_one_device_each_where_a_study_leaves_it_open() -> None:
    assert preflight(load("", "distributed.strategy=auto")) == Placement(world_size=1, gpus=("0",), threads_per_rank=4)
    two = "resources: {devices_per_trial: 2}\n"
    assert preflight(load(two, "distributed.strategy=auto")).world_size == 2


def test_devices_that_do_not_exist_are_an_error() -> None:
    with pytest.raises(DeviceError, match=r"lists \[5\], but there are only 2 GPUs"):
        preflight(load("", "distributed.devices=[5]"))


def test_a_place_for_locks_that_is_none_is_told_before_a_trial_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_LEASES", "/dev/null")
    with pytest.raises(DeviceError, match="HPO_LEASES"):
        preflight(load())


def test_a_fixed_batch_that_the_ranks_cannot_share_is_told_where_it_is_written() -> None:
    message = "training.global_batch_size 33 cannot be shared exactly by 2 ranks; nearest: 32 or 34"
    assert problems("config:\n  training: {global_batch_size: 33}\n") == [f"demo.yaml:6: {message}"]
    assert problems("", "training.global_batch_size=33") == [f"--set training.global_batch_size=33: {message}"]


def test_every_searched_batch_that_the_ranks_cannot_share_is_told() -> None:
    assert problems("  training.global_batch_size: {choice: [16, 17, 32, 33]}\n") == [
        "demo.yaml:5: training.global_batch_size 17 cannot be shared exactly by 2 ranks; nearest: 16 or 18",
        "demo.yaml:5: training.global_batch_size 33 cannot be shared exactly by 2 ranks; nearest: 32 or 34",
    ]


def test_every_combination_of_batch_and_accumulation_is_tried() -> None:
    space = (
        "  training.global_batch_size: {choice: [12, 18]}\n  training.accumulate_grad_batches: {choice: [1, 4, 6]}\n"
    )
    assert problems(space) == [
        "demo.yaml:5: training.global_batch_size 12 cannot be shared exactly by 2 ranks x 4 micro-batches;"
        " nearest: 8 or 16",
        "demo.yaml:5: training.global_batch_size 18 is not a multiple of accumulate_grad_batches 4; nearest: 16 and 20",
        "demo.yaml:5: training.global_batch_size 18 cannot be shared exactly by 2 ranks x 6 micro-batches;"
        " nearest: 12 or 24",
    ]


def test_a_range_of_batches_is_fine_when_every_step_of_it_can_be_shared() -> None:
    assert preflight(load("  training.global_batch_size: {int: [16, 64], step: 16}\n")).world_size == 2
    assert problems("  training.global_batch_size: {int: [16, 64]}\n") == [
        "demo.yaml:5: training.global_batch_size 17 cannot be shared exactly by 2 ranks; nearest: 16 or 18",
    ]


def test_one_rank_can_have_any_batch() -> None:
    space = "  training.global_batch_size: {choice: [16, 17]}\n"
    assert preflight(load(space, "distributed.devices=1")).world_size == 1


def test_a_pinned_batch_is_the_only_one_tried() -> None:
    space = "  training.global_batch_size: {choice: [16, 17]}\n"
    assert preflight(load(space, "training.global_batch_size=16")).world_size == 2


@pytest.mark.parametrize("name", ["data.csv", "sub/data.jsonl", "data.parquet", "/nowhere/data.csv"])
def test_a_missing_data_file_is_told_where_it_is_written(folder: Path, name: str) -> None:
    assert problems(f"config:\n  data: {{name: {name}}}\n") == [
        f"demo.yaml:6: data.name: there is no file '{name}' (seen from {folder})"
    ]
    assert problems("", f"data.name={name}")[0].startswith(f"--set data.name={name}: data.name: there is no file")


def test_a_data_file_that_is_there_and_a_named_dataset_are_fine(folder: Path) -> None:
    (folder / "it's my data.csv").touch()
    for name in ("it's my data.csv", "package_docs", "some/hub-dataset"):
        assert preflight(load("", f'data.name="{name}"'))


def test_a_task_in_a_module_that_is_not_here_is_told() -> None:
    assert problems("", "task=no_such_package.tasks:Mine") == [
        "--set task=no_such_package.tasks:Mine: task: no module 'no_such_package' here;"
        " start hpo in the folder that holds it, or install it"
    ]


def test_a_module_that_cannot_be_looked_up_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as in a script or a notebook
    assert "task: no module '__main__' here" in problems("", "task=__main__:Mine")[0]


def test_a_task_of_ones_own_is_found_in_the_working_directory_without_being_imported(folder: Path) -> None:
    (folder / "my_own_tasks.py").write_text("raise RuntimeError('imported')\n")
    before = list(sys.path)
    assert preflight(load("", "task=my_own_tasks:Mine"))
    assert sys.path == before
    assert "my_own_tasks" not in sys.modules


def test_all_problems_are_told_at_once() -> None:
    found = problems("", "task=no_such_package:X", "data.name=missing.csv", "training.global_batch_size=1")
    assert [text.partition(": ")[0] for text in found] == [
        "--set training.global_batch_size=1",
        "--set data.name=missing.csv",
        "--set task=no_such_package:X",
    ]


def test_sampled_values_that_never_go_together_are_told_before_anything_is_built() -> None:
    space = "  training.global_batch_size: {choice: [30, 42]}\n  training.accumulate_grad_batches: {choice: [4]}\n"
    with pytest.raises(ConfigError, match="is not a multiple of accumulate_grad_batches 4"):
        module.check_jobs(load(space))
