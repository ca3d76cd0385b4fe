"""The share of each hyperparameter in what tells good trials from others: PED-ANOVA, as Optuna has it.

Watanabe, Bansal, Hutter 2023, "PED-ANOVA: Efficiently quantifying hyperparameter importance in arbitrary subspaces",
arXiv 2304.10255.
"""

from __future__ import annotations

import warnings

import optuna

from hpo.criteria import signs
from hpo.reporting.leaderboard import completed


def importances(study: optuna.Study, place: int = 0) -> dict[str, float]:
    """For the objective at that place, the largest share first; empty when there is too little."""
    if len({trial.values[place] for trial in completed(study)}) < 2:  # nothing to explain
        return {}
    sign = signs([study.directions[place].name.lower()])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few trials say little, and that lower values are taken for better
        found = optuna.importance.get_param_importances(study, target=lambda trial: -sign * trial.values[place])
    return {name: float(share) for name, share in found.items()}
