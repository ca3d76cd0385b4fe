"""What a study with several objectives has come to, as one value. What each number means is in docs/report.md."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from hpo.criteria import objectives_of
from hpo.reporting.importance import importances
from hpo.reporting.leaderboard import completed
from hpo.reporting.savings import Cost, cost_of
from hpo.reporting.summary import BestTrial, StudyStatus, describe_front, describe_status, describe_trial
from hpo.study import IDENTITY, is_feasible


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontReport:
    """A study and its Pareto front."""

    status: StudyStatus
    objectives: list[dict[str, str]]
    """Metric and direction of each."""
    front: list[BestTrial]
    """The best in the first objective first."""
    dominated: list[BestTrial]
    """The other complete trials that keep the constraints."""
    infeasible: list[BestTrial]
    """The complete trials that violate one."""
    importances: dict[str, dict[str, float]]
    """Of each metric, the share of each hyperparameter; without those of which there is too little."""
    cost: Cost


def describe_front_study(study: optuna.Study) -> FrontReport:
    """Put the report together. Raises NoBestTrialError."""
    front, objectives = describe_front(study), objectives_of(study.user_attrs[IDENTITY])
    shares = {each["metric"]: importances(study, place) for place, each in enumerate(objectives)}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    numbers = {trial.number for trial in front}
    dominated = [trial for trial in completed(study) if trial.number not in numbers]
    infeasible = [trial for trial in complete if not is_feasible(trial)]
    return FrontReport(
        status=describe_status(study),
        objectives=objectives,
        front=front,
        dominated=[describe_trial(study, trial) for trial in dominated],
        infeasible=[describe_trial(study, trial) for trial in infeasible],
        importances={metric: found for metric, found in shares.items() if found},
        cost=cost_of(study),
    )
