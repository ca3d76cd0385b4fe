"""Checkpoints that cannot be lost: whole or known not to be, and never written over by an attempt that is over."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import SmallDisk
from training.checkpoint import Checkpoints, Progress, ShardedCheckpoints, TrainingState
from training.checksums import Position, is_whole
from training.config import JobConfig
from training.distributed import RunContext
from training.errors import DataError, Failure, FailureKind, classify
from training.optimizer import build_scheduler
from training.predictions import Predictions, write_predictions
from training.process import redirect_output
from training.run_dir import Event, Outcome, Record, RunDir

KILLS, MEGABYTES = int(os.environ.get("HPO_KILLS", "20")), int(os.environ.get("HPO_CHECKPOINT_MB", "1"))
WIDTH = math.isqrt(MEGABYTES * 2**18)
"""Of a square of float32."""
KINDS = [Checkpoints, ShardedCheckpoints]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


def new_state(width: int = 2) -> TrainingState:
    model = nn.Linear(width, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = build_scheduler(optimizer, JobConfig().scheduler, total_steps=3)
    return TrainingState(
        model=model, optimizer=optimizer, scheduler=scheduler, scaler=RunContext.alone().precision.scaler()
    )


def save(checkpoints: Checkpoints, state: TrainingState, epoch: int) -> None:
    """With weights that tell the epoch."""
    nn.init.constant_(state.model.weight, epoch)  # type: ignore[arg-type]
    checkpoints.save(state, Progress(epoch=epoch))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare(JobConfig())
    return run_dir


@pytest.fixture
def kept(run_dir: RunDir) -> tuple[Checkpoints, TrainingState]:
    checkpoints, state = Checkpoints(run_dir, is_main=True), new_state()
    save(checkpoints, state, 1)
    return checkpoints, state


def test_what_another_job_saved_is_told_with_its_path(kept: tuple[Checkpoints, TrainingState]) -> None:
    checkpoints, state = kept
    with pytest.raises(DataError, match=r"epoch_.*1.* cannot be read \(Error.*\); remove .* to train from the start"):
        checkpoints.load(replace(state, model=nn.Linear(3, 3)))


def test_too_little_memory_is_not_the_checkpoints_fault(
    kept: tuple[Checkpoints, TrainingState], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, state = kept

    def run_out(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(state.optimizer, "load_state_dict", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoints.load(state)


# Whole or known not to be


def truncate(file: Path, position: int) -> None:
    os.truncate(file, position)


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << position % 8
    file.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_two_checkpoints_stay_while_it_trains(kind: type[Checkpoints], run_dir: RunDir) -> None:
    checkpoints, state = kind(run_dir, is_main=True), new_state()
    for epoch in (1, 2, 3):
        save(checkpoints, state, epoch)
    assert [path.name[:10] for path in run_dir.saved_checkpoints()] == ["epoch_0003", "epoch_0002"]
    assert len([*run_dir.checkpoints.iterdir()]) == 2
    assert all(is_whole(path) for path in run_dir.saved_checkpoints())


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_used(
    kind: type[Checkpoints], damage: Callable[[Path, int], None], run_dir: RunDir, tmp_path: Path
) -> None:
    checkpoints, state = kind(run_dir, is_main=True), new_state()
    save(checkpoints, state, 1)
    save(checkpoints, state, 2)
    newest = run_dir.saved_checkpoints()[0]
    for file in [path for path in (newest, *newest.rglob("*")) if path.is_file()]:
        for part in range(20):
            damaged = RunDir(tmp_path / f"{file.name}-{part}")
            shutil.copytree(run_dir.path, damaged.path)
            path = damaged.path / file.relative_to(run_dir.path)
            damage(path, path.stat().st_size * part // 20)
            damaged.prepare(JobConfig(), resume=True)
            [finding] = damaged.load_findings()
            assert str(finding) == (
                f"{damaged.checkpoints / newest.name}: is damaged: it has not the checksum in its name;"
                " the training goes on from epoch_0001"
            )
            found = kind(damaged, is_main=True).load(state)
            assert found is not None and found.epoch == 1
            assert state.model.weight[0, 0] == 1
            shutil.rmtree(damaged.path)


def test_a_shard_that_is_missing_is_damage(run_dir: RunDir) -> None:
    save(ShardedCheckpoints(run_dir, is_main=True), new_state(), 1)
    [path] = run_dir.saved_checkpoints()
    for file in path.iterdir():
        data = file.read_bytes()
        file.unlink()
        assert not is_whole(path)
        file.write_bytes(data)
    assert is_whole(path)


def test_without_a_whole_one_the_training_starts_anew(kept: tuple[Checkpoints, TrainingState], run_dir: RunDir) -> None:
    flip(run_dir.saved_checkpoints()[0], 100)
    run_dir.append(Record(event=Event.EVALUATE, step=3, epoch=1, time=0.0, values={}))
    run_dir.prepare(JobConfig(), resume=True)
    assert "the training starts anew" in str(run_dir.load_findings()[0])
    assert kept[0].load(kept[1]) is None
    assert run_dir.records() == []


def test_one_of_an_earlier_version_has_no_checksum_and_is_taken_as_it_is(
    kept: tuple[Checkpoints, TrainingState], run_dir: RunDir
) -> None:
    run_dir.saved_checkpoints()[0].rename(run_dir.checkpoints / "epoch_0001.pt")
    run_dir.prepare(JobConfig(), resume=True)
    assert run_dir.load_findings() == []
    found = kept[0].load(kept[1])
    assert found is not None and found.epoch == 1


def save_until_killed(run_dir: RunDir, kind: type[Checkpoints], acknowledge: int) -> NoReturn:
    try:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        checkpoints, state = kind(run_dir, is_main=True), new_state(WIDTH)
        epoch = (checkpoints.load(state) or Progress()).epoch
        while True:
            epoch += 1
            save(checkpoints, state, epoch)
            os.write(acknowledge, epoch.to_bytes(4, "little"))
    finally:
        os._exit(1)


@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_in_the_middle_of_saves_loses_no_checkpoint(kind: type[Checkpoints], run_dir: RunDir) -> None:
    chance, num_half = random.Random(7), 0
    for _ in range(KILLS):
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            save_until_killed(run_dir, kind, writing)
        os.close(writing)
        acknowledged = int.from_bytes(os.read(reading, 4), "little")
        time.sleep(chance.uniform(0.0, 0.03 + 0.004 * (MEGABYTES - 1)))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        with open(reading, "rb") as pipe:
            rest = pipe.read()
        acknowledged = int.from_bytes(rest[-4:], "little") if rest else acknowledged
        num_half += any(run_dir.checkpoints.glob(".*.tmp"))
        run_dir.prepare(JobConfig(), resume=True)
        assert run_dir.load_findings() == []
        assert not any(run_dir.checkpoints.glob(".*"))
        state = new_state(WIDTH)
        found = kind(run_dir, is_main=True).load(state)
        assert found is not None and found.epoch >= acknowledged
        assert state.model.weight[0, 0] == found.epoch
    assert num_half > KILLS // 4, "too few of the kills came in the middle of a save"


# An attempt that is over


def append(run_dir: RunDir) -> None:
    run_dir.append(Record(event=Event.TRAIN, step=1, epoch=0, time=0.0, values={}))


def write_result(run_dir: RunDir) -> None:
    numbers = dict.fromkeys(("epochs", "steps", "train_samples", "eval_samples", "world_size"), 1)
    run_dir.write_result(Outcome(metrics={}, stopped=False, split_id="", device="cpu", **numbers))


LATE: dict[str, Callable[[RunDir], Any]] = {
    "a checkpoint": lambda run_dir: save(Checkpoints(run_dir, is_main=True), new_state(), 2),
    "a sharded checkpoint": lambda run_dir: save(ShardedCheckpoints(run_dir, is_main=True), new_state(), 2),
    "another rank's shard": lambda run_dir: save(ShardedCheckpoints(run_dir, is_main=False), new_state(), 2),
    "a record": append,
    "a result": write_result,
    "a failure": lambda run_dir: run_dir.write_error(Failure(kind=FailureKind.OOM, message="late")),
    "predictions": lambda run_dir: write_predictions(
        run_dir.predictions, Predictions(samples=np.arange(2), rows={"loss": np.zeros(2)})
    ),
    "where it goes on": lambda run_dir: run_dir.write_next(None),
    "a log": lambda run_dir: redirect_output(run_dir.log("rank_0")),
}


@pytest.mark.parametrize("write", LATE.values(), ids=LATE)
def test_an_attempt_that_comes_back_from_the_dead_writes_nowhere(
    write: Callable[[RunDir], Any], kept: tuple[Checkpoints, TrainingState], run_dir: RunDir, tmp_path: Path
) -> None:
    taken = RunDir(run_dir.path.rename(tmp_path / "taken"))
    before = sorted(path.stat().st_mtime_ns for path in (taken.path, *taken.path.rglob("*")))
    with pytest.raises(FileNotFoundError):
        write(run_dir)
    assert not run_dir.path.exists()
    assert sorted(path.stat().st_mtime_ns for path in (taken.path, *taken.path.rglob("*"))) == before


def test_a_checkpoint_that_was_begun_before_the_end_of_its_attempt_does_not_become_one(
    kept: tuple[Checkpoints, TrainingState], run_dir: RunDir, tmp_path: Path
) -> None:
    taken = RunDir(tmp_path / "taken")
    with pytest.raises(FileNotFoundError), run_dir.new_checkpoint(Position(2)) as file:
        file.write(b"late")
        run_dir.path.rename(taken.path)
    assert not run_dir.path.exists()
    taken.prepare(JobConfig(), resume=True)
    assert [path.name[:10] for path in taken.checkpoints.iterdir()] == ["epoch_0001"]


# A full disk


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_keeps_the_checkpoint_before_and_is_not_full_of_halves(
    kind: type[Checkpoints], small_disk: SmallDisk
) -> None:
    run_dir = RunDir(small_disk.path / "run")
    run_dir.prepare(JobConfig())
    checkpoints, state = kind(run_dir, is_main=True), new_state(512)
    save(checkpoints, state, 1)
    small_disk.fill()
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - torch's CheckpointException is no Exception
        save(checkpoints, state, 2)
    assert classify(caught.value) is FailureKind.DISK_FULL
    small_disk.free()
    run_dir.prepare(JobConfig(), resume=True)
    assert run_dir.load_findings() == []
    found = checkpoints.load(state)
    assert found is not None and found.epoch == 1
    save(checkpoints, state, 2)
    assert run_dir.last_epoch() == 2
