"""Metrics of any task: the size of a model is counted, its pace is timed where it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import measures
from training.config import JobConfig
from training.data import Batch, Loaders, PreparedData, build_loaders
from training.distributed import RunContext, Statistics
from training.evaluation import evaluate
from training.measures import Pace
from training.tasks import TrainingModule

CPU = torch.device("cpu")


class Line(TrainingModule):
    """Eight numbers, three of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.frozen = nn.Linear(4, 1), nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, batch: Batch) -> Tensor:
        return self.line(batch["x"]).mean()

    def evaluate(self, batch: Batch) -> Statistics:
        return {"count": torch.tensor(float(len(batch["x"])))}

    def summarize(self, statistics: Statistics) -> dict[str, float]:
        return {"count": statistics["count"].item()}


class OwnName(Line):
    def summarize(self, statistics: Statistics) -> dict[str, float]:
        return {"parameters": 7.0}


class Clock:
    """Moves on by what it is told to before each reading."""

    def __init__(self, *seconds: float) -> None:
        self.readings = iter(np.cumsum(seconds).tolist())

    def perf_counter(self) -> float:
        return next(self.readings)


class NoClock:
    def perf_counter(self) -> float:
        raise AssertionError("timed")


def loaders() -> Loaders:
    values = {"training.global_batch_size": 4, "cross_validation.folds": 3, "cross_validation.fold": 0}
    data = PreparedData(arrays={"x": np.zeros((40, 4), dtype=np.float32)})
    config = JobConfig().with_values({**values, "cross_validation.stratified": False})
    return build_loaders(data, config, RunContext.alone(), lambda batch: batch)


def test_every_number_of_the_model_counts_frozen_ones_too() -> None:
    found = evaluate(Line(), loaders(), RunContext.alone(), measure=["parameters"]).metrics
    assert found == {"parameters": 8.0, "count": 11.0}


def test_a_task_may_have_a_metric_of_the_same_name() -> None:
    assert evaluate(OwnName(), loaders(), RunContext.alone(), measure=["parameters"]).metrics == {"parameters": 7.0}


def test_the_pace_is_the_median_over_batches_of_the_time_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measures, "time", Clock(0.0, 4.0, 0.0, 0.8, 0.0, 0.6)
    )  # the first batch is slow, the last small
    pace = Pace(CPU, is_asked=True)
    for size in (4, 4, 2):
        with pace.of({"x": torch.zeros(size)}):
            pass
    assert pace.sample_ms == pytest.approx(300.0)


def test_nothing_is_timed_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "time", NoClock())
    assert evaluate(Line(), loaders(), RunContext.alone()).metrics == {"count": 11.0}
    with pytest.raises(AssertionError, match="timed"):
        evaluate(Line(), loaders(), RunContext.alone(), measure=["inference_ms"])
