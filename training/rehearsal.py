"""A training of nothing, by a process that waits for its job.

What a process does for the first time is slow, and slower in a fork, which copies each page of memory that it is the
first to write to. Done here, it is done before the job is there (docs/log.md).
"""

from __future__ import annotations

import numpy as np
import yaml
from torch import Tensor, nn

from training.config import JobConfig, dump_yaml
from training.data import Batch, PreparedData, Split, loaders_of
from training.distributed import RunContext, Statistics
from training.reporter import SilentReporter
from training.seeding import set_arithmetic
from training.tasks.task import TrainingModule
from training.trainer import run_training

SAMPLES, SCORED, FEATURES = 24, 8, 8
CHANGES = {"training.epochs": 1, "training.global_batch_size": 8, "training.log_every_n_steps": 1}


def rehearse() -> None:
    """Read a configuration, load samples, train and score a small network on the CPU; no file is written."""
    config = JobConfig.model_validate(yaml.safe_load(dump_yaml(JobConfig().model_dump()))).with_values(CHANGES)
    context = RunContext.alone()
    set_arithmetic(context.device)
    data = PreparedData(
        arrays={"inputs": np.zeros((SAMPLES, FEATURES), np.float32), "labels": np.arange(SAMPLES) % FEATURES}
    )
    chosen = Split(train=np.arange(SCORED, SAMPLES), scored=np.arange(SCORED), id="")
    loaders = loaders_of(chosen, data, config, context, lambda batch: batch)
    run_training(_SmallNetwork(), loaders, config, context, SilentReporter())


class _SmallNetwork(TrainingModule):
    """Of layers that most networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(FEATURES))

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.layers(batch["inputs"]), batch["labels"])

    def evaluate(self, batch: Batch) -> Statistics:
        return {"loss": self(batch)}

    def summarize(self, totals: Statistics) -> dict[str, float]:
        return {"loss": totals["loss"].item()}
