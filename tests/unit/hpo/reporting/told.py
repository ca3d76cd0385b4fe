"""Studies with told trials whose folds left predictions, without a training."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.ledger import LedgerStorage
from hpo.study import FOLDER, IDENTITY, SPLIT_ID, UID, trial_folder
from hpo.tally import FOLD_SCORES
from training.predictions import Predictions, Rows, write_predictions

NOON = datetime(2026, 1, 1, 12)
LR = {"optimizer.lr": FloatDistribution(1e-5, 1.0, log=True)}


def study_in(
    folder: Path,
    *trials: FrozenTrial,
    metric: str = "accuracy",
    direction: str = "maximize",
    repeats: int = 1,
    further: Mapping[str, str] | None = None,
) -> optuna.Study:
    """A study of two folds and three epochs with these trials; `further` objectives are directions by metric."""
    directions = {metric: direction, **(further or {})}
    study = optuna.create_study(
        storage=LedgerStorage("sqlite://"), study_name="demo", directions=[*directions.values()]
    )
    objectives = [{"metric": name, "direction": each} for name, each in directions.items()]
    config = {"cross_validation.folds": 2, "cross_validation.repeats": repeats, "training.epochs": 3}
    objective = objectives if further else objectives[0]
    study.set_user_attr(IDENTITY, {"objective": objective, "config": config, "max_epochs": 3})
    study.set_user_attr(FOLDER, str(folder))
    study.set_user_attr(UID, "abc")
    for trial in trials:
        study.add_trial(trial)
    return study


def complete(*scores: float, minute: int = 0, epochs: int = 3, split_id: str = "s", **attributes: Any) -> FrozenTrial:
    """A trial with a score for each fold, told at that minute."""
    trial = create_trial(
        value=fmean(scores),
        params={"optimizer.lr": 0.1 / (1 + minute)},
        distributions=LR,
        user_attrs={FOLD_SCORES: list(scores), SPLIT_ID: split_id, **attributes},
        intermediate_values={fold * 3 + epoch + 1: s for fold, s in enumerate(scores) for epoch in range(epochs)},
    )
    trial.datetime_complete = NOON + timedelta(minutes=minute)
    return trial


def several(*folds: tuple[float, ...], lr: float = 0.1, violation: float = -1.0, **attributes: Any) -> FrozenTrial:
    """A trial with a score of each objective for each fold."""
    return create_trial(
        values=[fmean(column) for column in zip(*folds, strict=True)],
        params={"optimizer.lr": lr},
        distributions=LR,
        user_attrs={FOLD_SCORES: [list(fold) for fold in folds], SPLIT_ID: "s", **attributes},
        constraints={"parameters.at_most": violation},
    )


def stopped(*values: float, minute: int = 0, **attributes: Any) -> FrozenTrial:
    """A trial that was stopped after that many epochs."""
    reported = {step + 1: value for step, value in enumerate(values)}
    trial = create_trial(
        state=TrialState.PRUNED,
        value=values[-1],
        intermediate_values=reported,
        user_attrs={FOLD_SCORES: [], **attributes},
    )
    trial.datetime_complete = NOON + timedelta(minutes=minute)
    return trial


def keep(study: optuna.Study, number: int, rows: Rows, *, folds: int = 2) -> None:
    """Leave predictions of that trial: `rows` of all samples, every folds-th in each fold."""
    samples = np.arange(len(next(iter(rows.values()))), dtype=np.int32)
    for fold in range(folds):
        mine = slice(fold, None, folds)
        folder = trial_folder(study, study.trials[number]) / f"fold_{fold}"
        folder.mkdir(parents=True)
        kept = Predictions(samples=samples[mine], rows={name: values[mine] for name, values in rows.items()})
        write_predictions(folder / "predictions", kept)
