"""All that ``hpo report`` says of a study, as one value. What each number means is in docs/report.md."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import optuna

from hpo.reporting.bias_correction import Corrected, correct
from hpo.reporting.calibration import Calibration, calibration, confusion
from hpo.reporting.leaderboard import Standing, completed, rank_trials
from hpo.reporting.out_of_fold import out_of_fold
from hpo.reporting.savings import Cost, cost_of
from hpo.reporting.summary import BestTrial, StudyStatus, describe_best, describe_status
from hpo.study import best_trial, require_one_objective, trial_folder
from training.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReport:
    """A study and its winner."""

    status: StudyStatus
    best: BestTrial
    corrected: Corrected
    leaderboard: list[Standing]
    importances: dict[str, float]
    """Share of each hyperparameter in how the scores differ, the largest first; empty when there is too little."""
    cost: Cost
    calibration: Calibration | None
    """Of the winner; like `confusion` None when it is no classifier or kept no predictions."""
    confusion: list[list[int]] | None

    @property
    def tied(self) -> list[int]:
        """Numbers of the trials that cannot be told from the best, itself left out."""
        return [each.number for each in self.leaderboard[1:] if each.is_tied]


def describe_study(study: optuna.Study) -> StudyReport:
    """Put the report together. Raises NoBestTrialError, and DataError when predictions are damaged."""
    require_one_objective(study, "a report is about one")
    winner = best_trial(study)
    winners = out_of_fold(study, winner) or []
    try:
        calibrated, confused = (calibration(winners), confusion(winners)) if winners else (None, None)
    except (ValueError, TypeError, IndexError) as error:
        folder = trial_folder(study, winner)
        raise DataError(f"predictions in {folder} are damaged ({error}); remove their folders") from error
    return StudyReport(
        status=describe_status(study),
        best=describe_best(study),
        corrected=correct(study),
        leaderboard=rank_trials(study),
        importances=_importances(study),
        cost=cost_of(study),
        calibration=calibrated,
        confusion=confused,
    )


def _importances(study: optuna.Study) -> dict[str, float]:
    values = {trial.values[0] for trial in completed(study)}
    if len(values) < 2:  # nothing to explain
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items()}
