"""What trials are judged by: the objectives and constraints of a study, on what a job reports.

The score of a fold or a trial is a number with one objective, and a tuple of them, in their order, with several. A
metric of a trial is the mean over its folds. A constraint is violated by how far its metric is on the wrong side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hpo.study_config import ConstraintConfig, ObjectiveConfig

Score = float | tuple[float, ...]
"""Of a fold or a trial."""
Names = str | tuple[str, ...]
"""What belongs to each objective, in the same form: metrics, directions."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """The objectives, one or several, and the constraints."""

    objectives: Sequence[ObjectiveConfig]
    constraints: Sequence[ConstraintConfig] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that a job must report, each once."""
        names = [each.metric for each in self.objectives] + [each.metric for each in self.constraints]
        return tuple(dict.fromkeys(names))

    @property
    def metric(self) -> Names:
        """Of each objective."""
        names = tuple(each.metric for each in self.objectives)
        return names if names[1:] else names[0]

    @property
    def direction(self) -> Names:
        """Of each objective: ``maximize`` or ``minimize``."""
        names = tuple(str(each.direction) for each in self.objectives)
        return names if names[1:] else names[0]

    def unusable(self, metrics: Mapping[str, float]) -> str | None:
        """The first metric that is missing or not finite."""
        return next((name for name in self.metrics if not math.isfinite(metrics.get(name, math.nan))), None)

    def score(self, metrics: Mapping[str, float]) -> Score:
        """What `metrics` come to."""
        values = tuple(metrics[each.metric] for each in self.objectives)
        return values if values[1:] else values[0]

    def violations(self, folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Of each constraint by its name: above zero where the mean over `folds` is on the wrong side."""
        return {each.name: each.violation(fmean(fold[each.metric] for fold in folds)) for each in self.constraints}


def not_reported(metric: str, metrics: Iterable[str], *, key: str = "objective.metric") -> str:
    """What is wrong with a study that asks, by `key`, for a metric which is not among those of its task."""
    return f"the task reports no metric '{metric}' (it reports: {', '.join(metrics)}); change {key}"


def signs(directions: Iterable[str]) -> list[float]:
    """What turns each value so that larger is better."""
    return [1.0 if direction == "maximize" else -1.0 for direction in directions]


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of at least one."""
    if isinstance(scores[0], tuple):
        return tuple(map(fmean, zip(*(as_tuple(score) for score in scores), strict=True)))
    return fmean(score for score in scores if not isinstance(score, tuple))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One for each objective, also of a single one."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def by_metric(metric: Names, score: Score) -> dict[str, float]:
    """Each objective's value by its metric."""
    return dict(zip(as_tuple(metric), as_tuple(score), strict=True))


def objectives_of(identity: Mapping[str, Any]) -> list[dict[str, str]]:
    """The objectives in what a study keeps as its identity: a mapping where there is one."""
    stored = identity["objective"]
    return stored if isinstance(stored, list) else [stored]
