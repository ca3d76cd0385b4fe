"""The Pareto front of several objectives: as a table for people, and each of its trials as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpo.console import number, parameters
from hpo.fold_statistics import Interval
from hpo.reporting.summary import BestTrial


def front_table(trials: Sequence[BestTrial]) -> list[tuple[str, ...]]:
    """The means of every objective with their intervals, and hyperparameters; at least one trial. A header first."""
    header = ("trial", *(f"{each.metric} ({each.direction})" for each in trials[0].judgements), "hyperparameters")
    return [header, *((str(trial.number), *_means(trial), parameters(trial.params)) for trial in trials)]


def front_values(trial: BestTrial) -> dict[str, Any]:
    """A trial of several objectives."""
    objectives = [asdict(each) for each in trial.judgements]
    where = {"folder": trial.folder, "config": str(trial.folder / "config.yaml")}
    return {"number": trial.number, "objectives": objectives, "params": trial.params, **where}


def _means(trial: BestTrial) -> list[str]:
    return [_brief(each.interval) for each in trial.judgements]


def _brief(interval: Interval) -> str:
    """``0.8390 (0.8012 to 0.8768)``; without the bounds where folds do not differ."""
    is_wide = interval.high > interval.low
    return number(interval.mean) + (f" ({number(interval.low)} to {number(interval.high)})" if is_wide else "")
