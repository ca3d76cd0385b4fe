"""The search space: from the study file to Optuna's distributions, and from sampled values to a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from hpo.study_config import ParameterConfig, Scalar
from training.config import JobConfig, KeyPath, Layer, assign, flatten, problems_of, suggestion
from training.config.schema import LoraConfig
from training.errors import Problem

Space = Mapping[str, ParameterConfig]

VOLATILE = ("distributed.", "output.", "data.num_workers")
"""Keys that say where and how a job runs, not what it computes: a study may go on with other ones."""
SEARCHABLE = ("distributed.strategy", "distributed.sync_batchnorm")
"""But these may be searched."""
MAX_GRID = 100_000
"""Points of a grid; Optuna keeps them all in memory."""


def distribution(parameter: ParameterConfig) -> BaseDistribution:
    """Optuna's distribution of one parameter."""
    if parameter.float_range is not None:
        low, high = parameter.float_range
        return FloatDistribution(low, high, log=parameter.log, step=parameter.step)
    if parameter.int_range is not None:
        low, high = parameter.int_range
        return IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
    assert parameter.choice is not None
    return CategoricalDistribution(parameter.choice)


def sample(trial: optuna.Trial, space: Space, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Sample every parameter whose conditions hold, parents first; `fixed` are the configuration's other values."""
    values: dict[str, Any] = {}
    for name in parents_first(space):
        parameter = space[name]
        if all(_holds(wanted, values.get(key, fixed.get(key))) for key, wanted in parameter.when.items()):
            values[name] = _suggest(trial, name, parameter)
    return values


def _suggest(trial: optuna.Trial, name: str, parameter: ParameterConfig) -> Any:
    match distribution(parameter):
        case FloatDistribution() as known:
            return trial.suggest_float(name, known.low, known.high, log=known.log, step=known.step)
        case IntDistribution() as known:
            return trial.suggest_int(name, known.low, known.high, log=known.log, step=known.step)
        case CategoricalDistribution() as known:
            return trial.suggest_categorical(name, known.choices)


def _holds(wanted: Scalar | list[Scalar], value: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def parents_first(space: Space) -> list[str]:
    """Names ordered so that conditions come before what depends on them (as written otherwise); cycles left out."""
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [name for name in waiting if not any(key in waiting for key in space[name].when)]
        if not ready:
            return ordered
        ordered += ready
        waiting = [name for name in waiting if name not in ready]
    return ordered


def grid(space: Space, pinned: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every value of every parameter, for the grid sampler; a `pinned` one has its one value.

    Raises ValueError on a float without a step, on a condition and on more than `MAX_GRID` points.
    """
    values = {name: [pinned[name]] if name in pinned else _grid_values(name, space[name]) for name in space}
    size = math.prod(len(each) for each in values.values())
    if size > MAX_GRID:
        raise ValueError(f"a grid of {size} points is more than {MAX_GRID}; take larger steps or another sampler")
    return {name: list(each) for name, each in values.items()}


def _grid_values(name: str, parameter: ParameterConfig) -> Sequence[Any]:
    if parameter.when:
        raise ValueError(f"{name}: a grid has no conditions; remove when, or take another sampler")
    if parameter.choice is not None:
        return parameter.choice
    if parameter.int_range is not None:
        low, high = parameter.int_range
        return range(low, high + 1, int(parameter.step or 1))
    if parameter.step is None:
        raise ValueError(f"{name}: a grid needs a choice, an int or a float with a step")
    assert parameter.float_range is not None
    # Fractions, because 0.1 + 6 x 0.1 is above 0.7 in floats.
    first, last, step = (Fraction(str(number)) for number in (*parameter.float_range, parameter.step))
    count = int((last - first) / step) + 1
    if count > MAX_GRID:
        raise ValueError(f"{name}: {count} values are more than a grid of {MAX_GRID}; take a larger step")
    return [float(first + index * step) for index in range(count)]


_ADAPTERS = dict(flatten({"lora": LoraConfig().model_dump()}))
"""Keys of the one block that is null unless it is asked for; a sampled key of it asks."""


def space_problems(space: Space, job: JobConfig, layer: Layer) -> Iterator[Problem]:
    """Everything wrong with `space` against the job it changes; `layer` says where each parameter stands."""
    known = {**_ADAPTERS, **dict(flatten(job.model_dump()))}
    for name, parameter in space.items():
        place = layer.place_of((name,))
        if name not in known:
            message = f"{name} is not in the configuration{suggestion(name, known)}"
            yield Problem(place=place, message=message)
        elif name.startswith(VOLATILE) and name not in SEARCHABLE:
            message = f"{name} cannot be searched: it says where or how a job runs, not what it computes"
            yield Problem(place=place, message=message)
        elif name.startswith("cross_validation."):
            message = f"{name} cannot be searched: trials are compared on the same folds"
            yield Problem(place=place, message=message)
        else:
            yield from _value_problems(name, parameter, job, place)
        yield from (Problem(place=place, message=text) for text in _condition_problems(name, space, known))
    in_order = parents_first(space)
    for name in (name for name in space if name not in in_order):
        yield Problem(place=layer.place_of((name,)), message=f"{name}: its conditions form a circle")


def _value_problems(name: str, parameter: ParameterConfig, job: JobConfig, place: str) -> Iterator[Problem]:
    """Whether the extreme values (or every choice) fit the field's type and bounds.

    Rules between fields are left to the preflight: their other side may be searched as well.
    """
    path = tuple(name.split("."))
    said, values = set(), job.model_dump()
    for value in parameter.bounds or parameter.choice or ():
        assign(values, path, value)
        try:
            JobConfig.model_validate(values)
        except ValidationError as error:
            elsewhere: dict[KeyPath, str] = {path[:length]: "" for length in range(len(path))}
            for problem in problems_of(error, JobConfig, Layer(values, {**elsewhere, path: place})):
                if problem.place == place and problem.message not in said:
                    said.add(problem.message)
                    yield Problem(place=place, message=f"{name} cannot be {value!r}: {problem.message}")


def _condition_problems(name: str, space: Space, known: Mapping[str, Any]) -> Iterator[str]:
    for key, wanted in space[name].when.items():
        if key not in space:
            if key not in known:
                yield f"{name}: when: {key} is not in the configuration{suggestion(key, known)}"
            continue
        choices = space[key].choice
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if choices is not None and value not in choices:
                yield f"{name}: when: {key} is never {value!r}; it is one of {choices}"
