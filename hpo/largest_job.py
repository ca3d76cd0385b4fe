"""The configuration of a study to plan for: of its search space, the one that takes most memory."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

from hpo.definition import StudyDefinition
from hpo.plan import predict
from training.config import JobConfig
from training.errors import ConfigError
from training.run_dir import PlanRequest

MAX_CANDIDATES = 16
"""Configurations of a search space among which the largest is looked for."""
SMALLER_TAKES_MORE = {"training.accumulate_grad_batches", "model.patch_size"}
"""Parameters whose lowest value is the one to plan for."""


def largest_job(definition: StudyDefinition) -> JobConfig:
    """The configuration of the search space that takes most memory, of those with the largest numbers.

    Choices that are no numbers are tried in every combination, the first `MAX_CANDIDATES` of them. Raises ConfigError.
    """
    jobs, refused = [], []
    for params in itertools.islice(_extremes(definition), MAX_CANDIDATES):
        try:
            jobs.append(definition.trial_config(params))
        except ConfigError as error:  # some values do not go together
            refused.append(error)
    if not jobs:
        raise refused[0]
    # All are compared on one GPU, whatever their strategy.
    distinct = list({memory_key(job.with_values({"distributed.strategy": "none"})): job for job in jobs}.values())
    if len(distinct) == 1:
        return distinct[0]
    alone = PlanRequest(memory_bytes=sys.maxsize, world_size=1, every_way=False)
    return max(distinct, key=lambda job: predict(job, alone)[0].peak_bytes)


def _extremes(definition: StudyDefinition) -> Iterator[dict[str, Any]]:
    space = definition.config.search_space
    options: list[list[Any]] = []
    for key, parameter in space.items():
        end = min if key in SMALLER_TAKES_MORE else max
        choices = list(parameter.choice or ())
        numbers = [choice for choice in choices if isinstance(choice, (int, float)) and not isinstance(choice, bool)]
        if parameter.bounds:
            options.append([end(parameter.bounds)])
        else:
            options.append([end(numbers)] if len(numbers) == len(choices) else choices)
    for values in itertools.product(*options):
        yield dict(zip(space, values, strict=True))


def memory_key(config: JobConfig) -> str:
    """The part of a configuration that its memory depends on."""
    values = config.model_dump(exclude={"seed", "scheduler", "cross_validation", "output"})
    values["optimizer"] = {"name": config.optimizer.name, "momentum": config.optimizer.momentum > 0}
    for key in ("epochs", "log_every_n_steps", "max_grad_norm"):
        del values["training"][key]
    return json.dumps(values, sort_keys=True)
