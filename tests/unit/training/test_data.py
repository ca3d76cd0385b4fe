"""Prepared data is built once, and loaders give each rank its share of every batch."""

from __future__ import annotations

import importlib
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import JobConfig
from training.data import Batch, Loaders, PreparedData, _own_code, _source, build_loaders, prepare_once
from training.distributed import RunContext
from training.errors import DataError
from training.tasks.image_classification import ImageClassification


def config(tmp_path: Path, **changes: object) -> JobConfig:
    return JobConfig.model_validate({"output": {"root": str(tmp_path)}}).with_values(dict(changes))


def numbers(count: int) -> PreparedData:
    return PreparedData(arrays={"x": np.arange(count, dtype=np.int64), "labels": np.arange(count) % 2})


def test_many_at_once_build_once_and_read_the_same(tmp_path: Path) -> None:
    builds = []

    def build(folder: Path) -> PreparedData:
        builds.append(folder)
        (folder / "tokenizer").mkdir()
        return numbers(50)

    with ThreadPool(4) as pool:
        found = pool.map(lambda _: prepare_once(config(tmp_path), {"a": 1}, build), range(8))
    assert len(builds) == 1
    assert all((data.arrays["x"] == np.arange(50)).all() for data in found)
    assert (found[0].folder / "tokenizer").is_dir()
    assert isinstance(found[0].arrays["x"], np.memmap)


def test_another_recipe_is_built_apart_and_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> PreparedData:
        (folder / "half").touch()
        raise DataError("no such column")

    with pytest.raises(DataError, match="no such column"):
        prepare_once(config(tmp_path), {"a": 1}, fail)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    first = prepare_once(config(tmp_path), {"a": 1}, lambda folder: numbers(10))
    other = prepare_once(config(tmp_path), {"a": 2}, lambda folder: numbers(20))
    assert (len(first), len(other)) == (10, 20)


BASE = """\
import numpy
from training.data import PreparedData
class Base:
    def build(self, folder):
        return PreparedData(arrays={"x": numpy.arange(self.length)})
"""
OWN_TASK = """\
import functools
from own_base import Base
from training.data import prepare_once
class {name}(Base):
    length = {length}
    def prepare(self, config):
        return prepare_once(config, {{"a": 1}}, {build})
"""


@pytest.mark.parametrize("build", ["self.build", "lambda folder: self.build(folder)", "functools.partial(self.build)"])
def test_what_a_task_of_ones_own_prepares_is_built_again_when_its_name_or_its_source_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or sources of one second and size would share it
    (tmp_path / "own_base.py").write_text(BASE)
    lengths = []
    for name, length in (("Task", 10), ("Task", 10), ("Task", 20), ("Other", 20), ("Task", 10)):
        (tmp_path / "own.py").write_text(OWN_TASK.format(name=name, build=build, length=length))
        for module in ("own", "own_base"):  # as a process that starts now
            sys.modules.pop(module, None)
        _source.cache_clear()
        lengths.append(len(getattr(importlib.import_module("own"), name)().prepare(config(tmp_path))))
    assert lengths == [10, 10, 20, 20, 10]
    assert len([*tmp_path.glob("cache/data-*/x.npy")]) == 3


def test_tasks_without_a_source_go_by_their_names_and_those_of_this_package_by_the_recipe(tmp_path: Path) -> None:
    typed = "def {}(folder): return PreparedData(arrays={{'x': numpy.arange({})}})"
    lengths = []
    for name, length in (("first", 10), ("second", 20), ("first", 30)):
        names: dict[str, Any] = {"__name__": "typed", "numpy": np, "PreparedData": PreparedData}
        exec(typed.format(name, length), names)
        lengths.append(len(prepare_once(config(tmp_path), {"a": 1}, names[name])))
    assert lengths == [10, 20, 10]
    assert _own_code(ImageClassification()._build) == {}


def test_damaged_prepared_data_is_named(tmp_path: Path) -> None:
    data = prepare_once(config(tmp_path), {"a": 1}, lambda folder: numbers(10))
    (data.folder / "x.npy").write_bytes(b"not numpy")
    with pytest.raises(DataError, match=f"{data.folder.name} is damaged.*remove that folder"):
        prepare_once(config(tmp_path), {"a": 1}, lambda folder: numbers(10))


def loaders(tmp_path: Path, rank: int, world_size: int, **changes: object) -> Loaders:
    data = prepare_once(config(tmp_path), {"a": 1}, lambda folder: numbers(203))
    context = RunContext(rank=rank, world_size=world_size, device=torch.device("cpu"))
    return build_loaders(data, config(tmp_path, **changes), context, lambda batch: batch)


def values(batches: list[Batch]) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches_of_one_rank(tmp_path: Path, world_size: int) -> None:
    alone = loaders(tmp_path, 0, 1, **{"training.global_batch_size": 16})
    ranks = [loaders(tmp_path, rank, world_size, **{"training.global_batch_size": 16}) for rank in range(world_size)]
    for epoch in range(2):
        for each in (alone, *ranks):
            each.set_epoch(epoch)
        whole = [sorted(batch) for batch in values(list(alone.train))][: alone.steps_per_epoch]
        parts = [values(list(each.train)) for each in ranks]
        joined = [sorted(sum(step, [])) for step in zip(*parts, strict=True)][: alone.steps_per_epoch]
        assert joined == whole
        assert len(whole) == 162 // 16


def test_an_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    alone = loaders(tmp_path, 0, 1)
    first = values(list(alone.train))
    alone.set_epoch(1)
    assert values(list(alone.train)) != first


def test_each_sample_is_scored_on_one_rank(tmp_path: Path) -> None:
    ranks = [loaders(tmp_path, rank, 4) for rank in range(4)]
    scored = [x for each in ranks for batch in values(list(each.evaluate)) for x in batch]
    assert len(scored) == len(set(scored)) == ranks[0].eval_samples == 41


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="162 training samples are fewer than training.global_batch_size 256"):
        loaders(tmp_path, 0, 1, **{"training.global_batch_size": 256})


def test_a_fold_scored_on_the_test_split_trains_on_the_same_samples(tmp_path: Path) -> None:
    fold = {"cross_validation.folds": 3, "cross_validation.stratified": False, "cross_validation.fold": 1}
    final = loaders(tmp_path, 0, 1, **{**fold, "cross_validation.fold": None})
    as_scored = loaders(tmp_path, 0, 1, **fold)
    on_test = loaders(tmp_path, 0, 1, **fold, **{"cross_validation.score": "test"})
    assert values(list(on_test.train)) == values(list(as_scored.train))
    assert values(list(on_test.evaluate)) == values(list(final.evaluate)) != values(list(as_scored.evaluate))
    assert on_test.split_id == as_scored.split_id == final.split_id
    assert len(list(tmp_path.glob("cache/data-*/folds-*.npy"))) == 1
