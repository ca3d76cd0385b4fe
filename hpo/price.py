"""What a search costs, before it starts: jobs, epochs and samples, and device-hours where folds of it were measured."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import optuna

from hpo.budget import HOUR_S
from hpo.definition import StudyDefinition
from hpo.identity import identity_differences
from hpo.spending import EPOCHS, budget_of, fold_times
from hpo.stopping.halving import Halving
from hpo.study import IDENTITY, load_study, study_names
from hpo.tally import tally_of
from hpo.trials import halving_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What folds of these jobs took before."""

    study: str
    """Where: this study, or another of the same jobs."""
    num_folds: int
    fold_s: float
    """Wall seconds of a fold, at the median."""
    device_hours: float
    """Of the whole budget, if no trial is stopped."""
    saved: float
    """The part of that which stopping spares: by the plan of halving, else as it did for the trials finished so far."""

    @property
    def expected_device_hours(self) -> float:
        """Of the whole budget, if stopping spares as much as that."""
        return self.device_hours * (1 - self.saved)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What the budget of a study may come to; fewer trials where another limit of it comes first."""

    limits: dict[str, Any]
    """The budgets that are set, by key."""
    trials: int
    folds: int
    jobs: int
    epochs: tuple[int, int]
    """Fewest and most of a fold."""
    max_samples: int | None
    """Of the data, at most; None when all are taken."""
    measured: Measured | None
    """None as long as no fold has ended."""


def price_of(definition: StudyDefinition, storage: optuna.storages.BaseStorage | None) -> Price:
    """The price of `definition`, by what the studies in `storage` know of it."""
    trials, folds = budget_of(definition).total, definition.job.cross_validation.num_splits
    searched = definition.config.search_space.get(EPOCHS)
    values = [definition.job.training.epochs] if searched is None or searched.when else []
    if searched is not None:
        values += [int(value) for value in searched.bounds or searched.choice or () if value]
    return Price(
        limits=definition.config.budget.model_dump(exclude_none=True),
        trials=trials,
        folds=folds,
        jobs=trials * folds,
        epochs=(min(values), max(values)),
        max_samples=definition.job.data.max_samples,
        measured=_measured(definition, storage, trials * folds) if storage is not None else None,
    )


def _measured(definition: StudyDefinition, storage: optuna.storages.BaseStorage, jobs: int) -> Measured | None:
    """By the study itself, else by the one of the same jobs that measured the most folds."""
    found = {name: load_study(name, storage) for name in study_names(storage)}
    own = found.pop(definition.config.study, None)
    alike = [study for study in found.values() if _has_same_jobs(study, definition)]
    alike.sort(key=lambda study: len(fold_times(study, definition)), reverse=True)
    measures = (_measure(study, definition, jobs) for study in (*([own] if own else []), *alike))
    return next((measured for measured in measures if measured), None)


def _has_same_jobs(study: optuna.Study, definition: StudyDefinition) -> bool:
    """Whether it searches the same parameters in the same ranges, of jobs that are fixed to the same values."""
    theirs, ours = study.user_attrs[IDENTITY], definition.identity()
    judged = {"objective": ours["objective"], "constraints": ours.get("constraints", [])}  # costs nothing
    is_comparable = not identity_differences({**theirs, **judged}, ours)
    return is_comparable and theirs["search_space"] == ours["search_space"]


def _measure(study: optuna.Study, definition: StudyDefinition, jobs: int) -> Measured | None:
    times = fold_times(study, definition)
    if not times:
        return None
    fold_device_s = fmean(time.seconds * time.num_devices for time in times)
    tally = tally_of(study)
    num_trials = len({reported.root for reported in tally.reported()})
    whole_s, halving = num_trials * definition.job.cross_validation.num_splits * fold_device_s, halving_of(definition)
    spared = max(0.0, 1 - tally.device_seconds() / whole_s) if whole_s else 0.0
    return Measured(
        study=study.study_name,
        num_folds=len(times),
        fold_s=median(time.seconds for time in times),
        device_hours=jobs * fold_device_s / HOUR_S,
        saved=spared if halving is None else _planned(halving, definition),
    )


def _planned(halving: Halving, definition: StudyDefinition) -> float:
    """The part of all folds that halving spares; trials of the audit spare nothing."""
    share = halving.share(budget_of(definition).total, definition.max_epochs)
    return (1 - share) * (1 - definition.config.stopping.audit)
