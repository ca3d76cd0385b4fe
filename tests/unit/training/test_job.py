"""What a job says of its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from training.data import Loaders
from training.distributed import RunContext
from training.job import _outcome as outcome
from training.run_dir import Outcome
from training.trainer import TrainingResult


@dataclass
class Counts:
    """What a result takes of the loaders."""

    eval_samples: int
    train_samples: int = 100
    split_id: str = "same"


def result_on(device: str, *, eval_samples: int) -> Outcome:
    fields: dict[str, Any] = {"metrics": {"accuracy": 0.5}, "stopped": False, "epochs": 1, "steps": 1}
    context = RunContext(rank=0, world_size=1, device=torch.device(device))
    return outcome(TrainingResult(**fields), cast(Loaders, Counts(eval_samples)), context)


@pytest.mark.parametrize(
    ("device", "eval_samples", "tolerance"), [("cpu", 50, 0.0), ("cuda", 50, 0.02), ("cuda", 5000, 0.001)]
)
def test_only_a_cpu_promises_the_same_bits(device: str, eval_samples: int, tolerance: float) -> None:
    assert result_on(device, eval_samples=eval_samples).tolerance == tolerance


def test_the_instructions_of_a_cpu_are_among_its_versions() -> None:
    assert result_on("cpu", eval_samples=50).versions["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert "cpu" not in result_on("cuda", eval_samples=50).versions
