"""Where the hyperparameters of a trial come from: the study's sampler, by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from hpo.definition import StudyDefinition
from hpo.history import HistorySampler
from hpo.search_space import grid, sample
from hpo.step_axis import StepAxis
from training.config import flatten


def sampled(definition: StudyDefinition, count: int) -> list[dict[str, Any]]:
    """`count` sets of hyperparameters drawn at random from the search space, outside any storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        sampler = PartialFixedSampler(definition.pinned, RandomSampler(seed=definition.config.sampler.seed))
        study = optuna.create_study(sampler=sampler)
        return [sampled_values(study.ask(), definition) for _ in range(count)]


def sampled_values(trial: optuna.Trial, definition: StudyDefinition) -> dict[str, Any]:
    """The hyperparameters of `trial`, which its sampler chooses one by one."""
    space = definition.config.search_space
    fixed = {key: value for key, value in flatten(definition.job.model_dump()) if key not in space}
    return sample(trial, space, fixed)


def sampler_for(definition: StudyDefinition, done: int) -> BaseSampler:
    """The study's sampler for the trial after `done` others.

    Samplers that only draw random numbers get a seed of their own per trial, so a continued sweep samples what an
    uninterrupted one would have, and never the same points again. Where trials are halved there are four times as many
    of them, and TPE looks at each parameter by itself: as multivariate it keeps to the first category that was good.
    """
    config = definition.config.sampler
    seed = int(np.random.SeedSequence((config.seed, done)).generate_state(1)[0])
    is_joint = not definition.config.halves
    build: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: RandomSampler(seed=seed),
        "tpe": lambda: TPESampler(
            seed=seed,
            n_startup_trials=config.startup_trials,
            multivariate=is_joint,
            group=is_joint and _is_conditional(definition),
        ),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=config.startup_trials),
        "cmaes": lambda: CmaEsSampler(
            seed=seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False
        ),
        "qmc": lambda: QMCSampler(
            seed=config.seed,
            scramble=True,
            independent_sampler=RandomSampler(seed=seed),  # what was not in the first trial
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
        ),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=config.startup_trials),
        "grid": lambda: _Grid(grid(definition.config.search_space, definition.pinned), seed=config.seed),
    }
    sampler = build[config.name]()
    if config.name in ("tpe", "gp", "cmaes", "nsga2"):  # they learn
        sampler = HistorySampler(sampler, step_axis(definition), config.max_history)
    return PartialFixedSampler(definition.pinned, sampler) if definition.pinned else sampler


def step_axis(definition: StudyDefinition) -> StepAxis:
    """On which the trials of a study report their values."""
    job = definition.job
    return StepAxis(definition.max_epochs, job.cross_validation.num_splits, job.training.epochs)


def _is_conditional(definition: StudyDefinition) -> bool:
    return any(parameter.when for parameter in definition.config.search_space.values())


class _Grid(GridSampler):
    """Optuna's grid, which may only stop a study from inside ``Study.optimize``; the orchestrator looks for itself."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do not stop the study."""


def grid_size(definition: StudyDefinition) -> int | None:
    """Number of points of the grid, or None for other samplers."""
    if definition.config.sampler.name != "grid":
        return None
    return math.prod(len(values) for values in grid(definition.config.search_space, definition.pinned).values())
