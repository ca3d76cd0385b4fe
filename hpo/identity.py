"""Which changes of a study's definition make its scores incomparable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility

from hpo.criteria import objectives_of
from hpo.search_space import distribution
from hpo.study_config import ParameterConfig
from training.config import JobConfig, flatten


def identity_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for each incompatible change; wider or narrower ranges and added or removed parameters are compatible."""
    lines = [*_objective_differences(stored, wanted)]
    for name in sorted(set(stored["search_space"]) & set(wanted["search_space"])):
        before, after = (side["search_space"][name] for side in (stored, wanted))
        try:
            check_distribution_compatibility(_distribution(before), _distribution(after))
        except ValueError:
            lines.append(f"search_space.{name}: {_brief(before)} -> {_brief(after)}")
    searched = {*stored["search_space"], *wanted["search_space"]}
    if stored["max_epochs"] != wanted["max_epochs"] and "training.epochs" in searched:
        # The axis of the reported values (hpo/pruning.py); where epochs are not searched, the configuration tells.
        lines.append(f"highest training.epochs: {stored['max_epochs']} -> {wanted['max_epochs']}")
    # A key that a version before this one did not know had what is its default now.
    old, new = ({**dict(flatten(JobConfig().model_dump())), **side["config"]} for side in (stored, wanted))
    for key in sorted({*old, *new} - searched):
        if old.get(key) != new.get(key):
            lines.append(f"config.{key}: {old.get(key)} -> {new.get(key)}")
    return lines


def _objective_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Of the objectives, and of the constraints."""
    old, new = objectives_of(stored), objectives_of(wanted)
    for number, (before, after) in enumerate(zip(old, new, strict=False)):
        name = f"objective.{number}" if old[1:] and new[1:] else "objective"
        yield from (f"{name}.{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])
    if len(old) != len(new):
        yield f"objective: {len(old)} -> {len(new)} objectives"
    if stored.get("constraints", []) != wanted.get("constraints", []):
        bounds = (map(_brief, each.get("constraints", [])) for each in (stored, wanted))
        yield f"constraints: {' -> '.join(', '.join(each) or 'none' for each in bounds)}"


def _distribution(parameter: dict[str, Any]) -> optuna.distributions.BaseDistribution:
    return distribution(ParameterConfig.model_validate(parameter))


def _brief(parameter: dict[str, Any]) -> str:
    return str({key: value for key, value in parameter.items() if value not in (None, False, {})})
