"""Rules that stop a losing trial, by name: inside a fold (epochs.py) and between folds (folds.py); and what pauses
trials and takes up the best again (halving.py). Pure functions of values, larger is better. hpo/pruning.py asks them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hpo.stopping import epochs, folds
from hpo.stopping.field import Field, Runner
from hpo.study_config import StoppingConfig

EpochRule = Callable[[Field, Runner, int, int], str]
"""Hears of the field, a trial, and the fold and epoch that it has just finished; why to stop it, or ""."""
FoldRule = Callable[[Field, Runner], str]
"""Hears of the field and a trial that has just ended a fold; why to stop it, or ""."""


def epoch_rule(config: StoppingConfig) -> EpochRule:
    """The rule inside a fold."""
    halving: dict[str, Any] = {"min_epochs": config.min_epochs, "reduction_factor": config.reduction_factor}
    rules: dict[str, EpochRule] = {
        "median": partial(epochs.percentile, kept=50.0, startup_trials=config.startup_trials),
        "percentile": partial(epochs.percentile, kept=config.percentile, startup_trials=config.startup_trials),
        "asha": partial(epochs.asha, **halving),
        "hyperband": partial(epochs.hyperband, **halving),
        "patience": partial(epochs.patience, patience=config.patience),
        "none": lambda *_: "",
    }
    return rules[config.epochs]


def fold_rule(config: StoppingConfig) -> FoldRule:
    """The rule between folds."""
    rules: dict[str, FoldRule] = {
        "aggressive": folds.aggressive,
        "forgiving": folds.forgiving,
        "wilcoxon": partial(folds.wilcoxon, p_value=config.p_value),
        "median": partial(folds.median, startup_trials=config.startup_trials),
        "halving": lambda *_: "",  # it pauses, and stops nothing
        "none": lambda *_: "",
    }
    return rules[config.folds]
