"""What the folds of a trial said of each sample, put together from their run directories."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from hpo.study import IDENTITY, trial_folder
from training.predictions import Predictions, joined, load_predictions
from training.run_dir import RunDir


def out_of_fold(study: optuna.Study, trial: FrozenTrial, *, is_flat: bool = False) -> list[Predictions] | None:
    """Of each repeat of the cross-validation, a prediction for each sample; None unless every fold kept its own.

    `is_flat` leaves out rows of several values, such as probabilities, which no metric needs. Raises DataError when
    they are damaged.
    """
    config = study.user_attrs[IDENTITY]["config"]
    folds, repeats = config["cross_validation.folds"], config.get("cross_validation.repeats", 1)
    found = [_fold(study, trial, fold) for fold in range(folds * repeats)]
    kept = [each for each in found if each is not None]
    if len(kept) < len(found):
        return None
    if is_flat:
        kept = [each.flat() for each in kept]
    return [joined(kept[start : start + folds]) for start in range(0, len(kept), folds)]


def _fold(study: optuna.Study, trial: FrozenTrial, fold: int) -> Predictions | None:
    return load_predictions(RunDir(trial_folder(study, trial) / f"fold_{fold}").predictions)
