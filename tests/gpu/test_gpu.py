"""The same jobs on GPUs: one process on one, DDP and FSDP with nccl on several. Skipped where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.devices import detect_hardware
from hpo.trial import JobStatus, run_single_trial
from tests.integration.conftest import DIGITS
from training.config import JobConfig
from training.run_dir import Event, RunDir

pytestmark = pytest.mark.gpu
GPUS = len(detect_hardware().gpus)


def losses(folder: Path, **changes: object) -> list[float]:
    values = {**DIGITS, "distributed": {}, "output": {"root": str(folder.parent / "runs")}}
    config = JobConfig.model_validate(values).with_values({"training.precision": 32, **changes})
    result = run_single_trial(config, RunDir(folder), on_record=lambda record: False, on_notice=print)
    assert result.status is JobStatus.COMPLETE, result.failure
    outcome = result.run_dir.load_result()
    assert outcome is not None
    assert outcome.device.startswith("cuda")
    return [record.values["loss"] for record in result.run_dir.records() if record.event is Event.TRAIN]


@pytest.mark.skipif(GPUS < 1, reason="no GPU")
def test_one_gpu_twice_is_the_same(tmp_path: Path) -> None:
    first, second = (losses(tmp_path / name, **{"distributed.devices": 1}) for name in ("first", "second"))
    assert first == second


VIT = {
    "architecture": "vit",
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.mark.skipif(GPUS < 1, reason="no GPU")
@pytest.mark.parametrize("precision", ["auto", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_mixed_precision_trains_nearly_the_same(precision: str, checkpointing: bool, tmp_path: Path) -> None:
    alone = {"distributed.devices": 1, "model": VIT}
    full = losses(tmp_path / "full", **alone)
    options = {"training.precision": precision, "training.gradient_checkpointing": checkpointing}
    assert losses(tmp_path / "mixed", **alone, **options) == pytest.approx(full, rel=3e-2)


@pytest.mark.skipif(GPUS < 1, reason="no GPU")
def test_a_cached_contrastive_batch_is_the_whole_one(tmp_path: Path) -> None:
    encoder = {"architecture": "bert", "vocab_size": 500, "hidden_dropout_prob": 0.0, **VIT}
    del encoder["patch_size"]
    pairs = {
        "task": "embedding",
        "data": {"name": "api_docs", "max_samples": 300},
        "model": {**encoder, "architecture": "bert", "attention_probs_dropout_prob": 0.0},
        "cross_validation.stratified": False,
        "distributed.devices": 1,
    }
    whole = losses(tmp_path / "whole", **pairs)
    assert losses(tmp_path / "cached", **pairs, **{"gradient_cache.chunk_size": 8}) == pytest.approx(whole, rel=1e-4)


@pytest.mark.skipif(GPUS < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one(strategy: str, tmp_path: Path) -> None:
    alone = losses(tmp_path / "alone", **{"distributed.devices": 1, "model": VIT})
    two = {"distributed.devices": 2, "distributed.strategy": strategy, "model": VIT}
    assert losses(tmp_path / "two", **two) == pytest.approx(alone, rel=1e-4)
