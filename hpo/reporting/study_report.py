"""What a study with one objective and its winner have come to, as one value. What each number means is in
docs/report.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial

from hpo.reporting.bias_correction import Corrected, correct
from hpo.reporting.calibration import Calibration, calibration, confusion
from hpo.reporting.importance import importances
from hpo.reporting.leaderboard import Standing, rank_trials
from hpo.reporting.out_of_fold import out_of_fold
from hpo.reporting.savings import Cost, cost_of
from hpo.reporting.summary import BestTrial, StudyStatus, describe_best, describe_status
from hpo.study import best_trial, trial_folder
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
    """Put the report together. Raises NoBestTrialError."""
    winner, corrected = best_trial(study), correct(study)
    calibrated, confused, damage = _predictions_of(study, winner)
    damaged = list(dict.fromkeys([*corrected.damaged, *damage]))
    return StudyReport(
        status=describe_status(study),
        best=describe_best(study),
        corrected=replace(corrected, damaged=damaged),
        leaderboard=rank_trials(study),
        importances=importances(study),
        cost=cost_of(study),
        calibration=calibrated,
        confusion=confused,
    )


def _predictions_of(
    study: optuna.Study, winner: FrozenTrial
) -> tuple[Calibration | None, list[list[int]] | None, list[str]]:
    """Its calibration and confusion, where there are such, and what is wrong with its predictions."""
    try:
        repeats = out_of_fold(study, winner) or []
        return (calibration(repeats), confusion(repeats), []) if repeats else (None, None, [])
    except DataError as error:
        return None, None, [f"trial {winner.number}: {error}"]
    except (ValueError, TypeError, IndexError) as error:
        place = trial_folder(study, winner)
        return None, None, [f"trial {winner.number}: predictions in {place} are damaged ({error}); remove them"]
