"""Definitions of studies, and trials of them without a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.definition import StudyDefinition
from hpo.study import ask
from hpo.study_config import StudyConfig
from training.config import Layer, job_config, merge, settings_layer

LR = {"float": [1e-4, 1e-1], "log": True}
NAME = {"choice": ["adamw", "sgd"]}
MOMENTUM = {"float": [0.5, 0.99], "when": {"optimizer.name": "sgd"}}
EPOCHS = {"int": [1, 5]}
PLAIN = {"optimizer.lr": LR, "optimizer.momentum": {"float": [0.5, 0.99]}, "training.epochs": EPOCHS}
CONDITIONAL = {"optimizer.lr": LR, "optimizer.name": NAME, "optimizer.momentum": MOMENTUM}
SCORED = create_trial(state=TrialState.COMPLETE, value=1.0)


def close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def define(
    space: Mapping[str, Any] = PLAIN,
    *,
    study: str = "demo",
    sampler: Mapping[str, Any] | None = None,
    objective: Mapping[str, str] | None = None,
    settings: tuple[str, ...] = (),
    rule: str = "halving",
) -> StudyDefinition:
    """A definition as ``load_definition`` makes one, of defaults and ``--set`` arguments."""
    config = StudyConfig.model_validate(
        {
            "study": study,
            "objective": objective or {"metric": "accuracy", "direction": "maximize"},
            "search_space": space,
            "sampler": {"startup_trials": 3, **(sampler or {"name": "random"})},
            "stopping": {"folds": rule},
        }
    )
    chosen = settings_layer(settings)
    job = job_config(merge([Layer(), chosen]))
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=chosen)


def score(params: Mapping[str, Any]) -> float:
    """An objective with one optimum, so that samplers have something to model."""
    lr, momentum = params.get("optimizer.lr", 0.01), params.get("optimizer.momentum", 0.7)
    return 1.0 - abs(math.log10(lr) + 2.3) / 4 - (momentum - 0.8) ** 2 + 0.01 * params.get("training.epochs", 1)


def evaluate(study: optuna.Study, definition: StudyDefinition, trials: int) -> list[dict[str, Any]]:
    """Ask and tell; returns the hyperparameters."""
    sampled = []
    for _ in range(trials):
        trial, params = ask(study, definition)
        assert trial.params == params
        study.tell(trial, score(params))
        sampled.append(params)
    return sampled
