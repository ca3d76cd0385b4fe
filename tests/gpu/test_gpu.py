"""The same jobs on GPUs: one process on one, DDP with nccl on several. Skipped where there are none."""

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
    config = JobConfig.model_validate(values).with_values(changes)
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


@pytest.mark.skipif(GPUS < 2, reason="fewer than two GPUs")
def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    alone = losses(tmp_path / "alone", **{"distributed.devices": 1})
    assert losses(tmp_path / "two", **{"distributed.devices": 2}) == pytest.approx(alone, rel=1e-4)
