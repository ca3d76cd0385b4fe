"""What the folds of a trial said of each sample, put together from their run directories."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from hpo.study import IDENTITY, trial_folder
from training.errors import DataError
from training.predictions import Predictions, joined, load_predictions
from training.run_dir import RunDir


def out_of_fold(study: optuna.Study, trial: FrozenTrial, *, is_flat: bool = False) -> list[Predictions] | None:
    """Of each repeat of the cross-validation, a prediction for each sample; None where no fold kept its own.

    `is_flat` leaves out rows of several values, such as probabilities, which no metric needs. Raises DataError, which
    names the folder, when they are damaged or only some are there.
    """
    config = study.user_attrs[IDENTITY]["config"]
    folds, repeats = config["cross_validation.folds"], config.get("cross_validation.repeats", 1)
    folder = trial_folder(study, trial)
    places = [RunDir(folder / f"fold_{fold}").predictions for fold in range(folds * repeats)]
    found = {place: each for place in places if (each := load_predictions(place, is_flat=is_flat)) is not None}
    if not found:
        return None
    names = set[str]().union(*(each.rows for each in found.values()))
    for place in places:
        if place not in found:
            raise DataError(f"there are no predictions in {place}, though other folds of the trial kept theirs")
        if missing := names - found[place].rows.keys():
            raise DataError(f"predictions in {place} are damaged ({min(missing)}.npy is missing); remove that folder")
    kept = [*found.values()]
    try:
        return [joined(kept[start : start + folds]) for start in range(0, len(kept), folds)]
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
