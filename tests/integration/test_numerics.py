"""The same configuration is the same training: repeated, resumed, and however many ranks share a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.trial import JobStatus, TrialResult, run_single_trial
from training.checksums import Position
from training.config import JobConfig
from training.errors import FailureKind
from training.run_dir import Event, RunDir

TOLERANCE = 1e-5
"""Largest relative difference of a float32 loss between one rank and several, or accumulated micro-batches."""


def run(config: JobConfig, folder: Path, **options: bool) -> TrialResult:
    def no_stop(record: object) -> bool:
        return False

    notices: list[str] = []
    result = run_single_trial(config, RunDir(folder), on_record=no_stop, on_notice=notices.append, **options)
    assert result.status is JobStatus.COMPLETE, (result.failure, notices)
    assert all("fsdp finds no repeated layers" in notice for notice in notices), notices
    return result


def losses(result: TrialResult) -> list[float]:
    return [record.values["loss"] for record in result.run_dir.records() if record.event is not Event.START]


def weights(result: TrialResult) -> bytes:
    return (result.run_dir.model / "model.safetensors").read_bytes()


def test_one_rank_two_ranks_and_accumulation_give_the_same_losses(job: JobConfig, tmp_path: Path) -> None:
    variants = {
        "one": {},
        "two": {"distributed.strategy": "ddp", "distributed.devices": 2},
        "accumulated": {
            "distributed.strategy": "ddp",
            "distributed.devices": 2,
            "training.accumulate_grad_batches": 2,
        },
    }
    results = {name: run(job.with_values(change), tmp_path / name) for name, change in variants.items()}
    assert [result.world_size for result in results.values()] == [1, 2, 2]
    expected = losses(results["one"])
    assert len(expected) == 2 * (213 // 32) + 2  # every step of two epochs and two evaluations
    for name in ("two", "accumulated"):
        assert losses(results[name]) == pytest.approx(expected, rel=TOLERANCE), name
        assert results[name].metrics["accuracy"] == results["one"].metrics["accuracy"]


@pytest.mark.quick
def test_one_rank_twice_is_identical_to_the_bit(job: JobConfig, tmp_path: Path) -> None:
    config = job.with_values({"model.dropout": 0.5})
    first, second = run(config, tmp_path / "first"), run(config, tmp_path / "second")
    assert losses(first) == losses(second)
    assert weights(first) == weights(second)


def test_another_seed_is_another_training(job: JobConfig, tmp_path: Path) -> None:
    first, other = run(job, tmp_path / "first"), run(job.with_values({"seed": 1}), tmp_path / "other")
    assert losses(first) != losses(other)


DYING_TASK = """\
import os, signal
from pathlib import Path
from training.tasks.image_classification import ImageClassification

class Dying(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        model.register_forward_pre_hook(self.die_in_the_third_epoch)
        return model

    steps = 0

    def die_in_the_third_epoch(self, module, inputs):
        self.steps += 1
        if self.steps > 2 * (213 // 32) + 3 and Path("deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_a_resumed_training_ends_bit_identical(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dying.py").write_text(DYING_TASK)
    config = job.with_values(
        {
            "task": "dying:Dying",
            "training.epochs": 3,
            "model.dropout": 0.5,
            "output.keep_checkpoint": True,
            "distributed.strategy": "auto",
            "distributed.devices": devices,
        }
    )
    whole = run(config, tmp_path / "whole")
    Path("deadly").touch()
    cut = RunDir(tmp_path / "cut")
    killed = run_single_trial(config, cut, on_record=lambda record: False, on_notice=print)
    assert killed.status is JobStatus.FAILED
    assert cut.load_result() is None
    assert cut.last_epoch() in (1, 2)
    Path("deadly").unlink()
    resumed = run(config, cut.path, resume=True)
    assert losses(resumed)[-1] == losses(whole)[-1]
    evaluations = [record.epoch for record in resumed.run_dir.records() if record.event is Event.EVALUATE]
    assert evaluations == [1, 2, 3]
    assert weights(resumed) == weights(whole)


PARKING_TASK = """\
from pathlib import Path
from training.run_dir import RunDir
from training.tasks.image_classification import ImageClassification

class Parking(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        model.register_forward_pre_hook(self.park_in_the_second_epoch)
        return model

    steps = 0

    def park_in_the_second_epoch(self, module, inputs):
        self.steps += module.training
        if self.steps == (213 // 32) + 3 and Path("cut").exists():
            RunDir(Path("cut")).request_stop(keeps_checkpoint=True)
"""


@pytest.mark.parametrize(
    "change",
    [
        {"data.num_workers": 2},
        {"distributed.strategy": "ddp", "distributed.devices": 2},
        {"distributed.strategy": "fsdp", "distributed.devices": 2},
        {"training.engine": "lightning"},
    ],
    ids=["one process", "ddp", "fsdp", "lightning"],
)
def test_a_training_that_was_parked_within_an_epoch_goes_on_from_that_step_and_ends_bit_identical(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parking.py").write_text(PARKING_TASK)
    config = job.with_values(
        {"task": "parking:Parking", "model.dropout": 0.5, "training.log_every_n_steps": 3, **change}
    )
    whole = run(config, tmp_path / "whole")
    cut = RunDir(tmp_path / "cut")
    parked = run_single_trial(config, cut, on_record=lambda record: False, on_notice=print)
    assert parked.status is JobStatus.STOPPED and parked.paused_at == 1, parked.failure
    steps_per_epoch = 213 // 32
    assert cut.position() == Position(1, steps_per_epoch + 3)
    resumed = run(config, cut.path, resume=True)
    assert losses(resumed) == losses(whole)
    assert weights(resumed) == weights(whole)


def test_a_checkpoint_within_an_epoch_does_not_go_on_with_batches_of_another_size(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parking.py").write_text(PARKING_TASK)
    config, cut = job.with_values({"task": "parking:Parking"}), RunDir(tmp_path / "cut")
    run_single_trial(config, cut, on_record=lambda record: False, on_notice=print)
    smaller = config.with_values({"training.global_batch_size": 16})
    refused = run_single_trial(smaller, cut, on_record=lambda record: False, on_notice=print, resume=True)
    assert refused.failure is not None and refused.failure.kind is FailureKind.DATA
    assert "within an epoch of 6 steps, which now has 13: go on with the same data" in refused.failure.message
    assert cut.position() == Position(1, 9), "the checkpoint stays"
