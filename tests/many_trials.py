"""A study with thousands of finished trials in seconds, for the tests and scripts/bench_orchestrator."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert, select

from hpo.definition import StudyDefinition
from hpo.sampling import sampled
from hpo.search_space import distribution
from hpo.study import SPLIT_ID
from hpo.study_config import StudyConfig
from hpo.tally import FOLD_SCORES, SAMPLED
from training.config import JobConfig, Layer

EPOCHS = 5
SPACE = {
    "optimizer.lr": {"float": [1e-5, 1e-1], "log": True},
    "optimizer.weight_decay": {"float": [0.0, 0.3]},
    "optimizer.momentum": {"float": [0.5, 0.99]},
    "optimizer.name": {"choice": ["adamw", "sgd"]},
    "scheduler.warmup_ratio": {"float": [0.0, 0.5]},
    "training.global_batch_size": {"choice": [16, 32, 64, 128]},
}


def define_six(root: Path, *, study: str = "many", sampler: str = "random") -> StudyDefinition:
    """A study of six parameters that writes below `root`."""
    config = StudyConfig.model_validate(
        {
            "study": study,
            "objective": {"metric": "accuracy", "direction": "maximize"},
            "search_space": SPACE,
            "sampler": {"name": sampler},
        }
    )
    job = JobConfig().with_values({"output.root": str(root), "training.epochs": EPOCHS})
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer())


def add_finished_trials(study: optuna.Study, definition: StudyDefinition, count: int) -> None:
    """Insert `count` completed (every third: pruned) trials as a sweep leaves them, in one transaction."""
    rng, now, trials = random.Random(0), datetime.now(UTC).replace(tzinfo=None), models.TrialModel
    space = {name: distribution(parameter) for name, parameter in definition.config.search_space.items()}
    drawn = sampled(definition, count)
    rows: dict[type[models.BaseModel], list[dict[str, Any]]] = defaultdict(list)
    with study._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]
        of_study = select(trials.trial_id).where(trials.study_id == study._study_id).order_by(trials.trial_id)
        first = len(connection.execute(of_study).all())
        told = [TrialState.PRUNED if index % 3 == 2 else TrialState.COMPLETE for index in range(count)]
        common = {"study_id": study._study_id, "_datetime_start_utc": now, "_datetime_complete_utc": now}
        numbered = [{**common, "number": first + index, "state": state} for index, state in enumerate(told)]
        connection.execute(insert(trials), numbered)
        for trial_id, params in zip(connection.scalars(of_study).all()[first:], drawn, strict=True):
            curve = [rng.random() for _ in range(EPOCHS)]
            rows[models.TrialValueModel].append({"trial_id": trial_id, "objective": 0, **_finite("value", curve[-1])})
            for name, value in params.items():
                stored = {"param_name": name, "param_value": space[name].to_internal_repr(value)}
                rows[models.TrialParamModel].append(
                    {"trial_id": trial_id, "distribution_json": distribution_to_json(space[name]), **stored}
                )
            for step, value in enumerate(curve, start=1):
                reported = {"trial_id": trial_id, "step": step, **_finite("intermediate_value", value)}
                rows[models.TrialIntermediateValueModel].append(reported)
            attributes = {SAMPLED: params, FOLD_SCORES: curve[-1:], SPLIT_ID: "split"}
            for key, attribute in attributes.items():
                stored = {"trial_id": trial_id, "key": key, "value_json": json.dumps(attribute)}
                rows[models.TrialUserAttributeModel].append(stored)
        for model, values in rows.items():
            connection.execute(insert(model), values)


def _finite(column: str, value: float) -> dict[str, Any]:
    """A finite value and its type, as Optuna's two tables of values have them."""
    return {column: value, f"{column}_type": "FINITE"}
