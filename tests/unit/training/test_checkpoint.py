"""Whose fault it is that a checkpoint is not taken up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.checkpoint import Checkpoints, Progress, TrainingState
from training.config import JobConfig
from training.distributed import RunContext
from training.errors import DataError
from training.optimizer import build_scheduler
from training.run_dir import RunDir


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Checkpoints, TrainingState]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = build_scheduler(optimizer, JobConfig().scheduler, total_steps=3)
    scaler = RunContext.alone().precision.scaler()
    state = TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    run_dir = RunDir(tmp_path)
    checkpoints = Checkpoints(run_dir, is_main=True)
    checkpoints.save(state, Progress(epoch=1))
    return checkpoints, state


def test_what_another_job_saved_is_told_with_its_path(kept: tuple[Checkpoints, TrainingState]) -> None:
    checkpoints, state = kept
    with pytest.raises(DataError, match=r"epoch_.*1.* cannot be read \(Error.*\); remove it to train from the start"):
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
