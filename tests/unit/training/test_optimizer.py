"""Schedules rise and fall as their names say; decay spares vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.config.schema import OptimizerConfig, SchedulerConfig
from training.optimizer import build_optimizer, build_scheduler


def rates(steps: int, **options: object) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerConfig(lr=1.0))
    scheduler = build_scheduler(optimizer, SchedulerConfig.model_validate(options), total_steps=steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_the_rate_rises_over_the_warmup_to_its_peak(name: str) -> None:
    found = rates(100, name=name, warmup_ratio=0.1)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == 1.0 == max(found)


def test_cosine_and_linear_fall_to_zero_and_constant_stays() -> None:
    assert rates(100, name="linear", warmup_ratio=0.0)[50] == pytest.approx(0.5)
    assert rates(100, name="cosine", warmup_ratio=0.0)[25] == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert rates(100, name="cosine", warmup_ratio=0.0)[-1] < 0.001
    assert set(rates(100, name="constant", warmup_ratio=0.0)) == {1.0}


def test_weight_decay_is_for_matrices_only() -> None:
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), OptimizerConfig(weight_decay=0.5))
    decayed = {group["weight_decay"]: [p.ndim for p in group["params"]] for group in optimizer.param_groups}
    assert decayed == {0.5: [2], 0.0: [1, 1, 1]}


def test_sgd_has_the_momentum_asked_for() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerConfig(name="sgd", momentum=0.7))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.7
