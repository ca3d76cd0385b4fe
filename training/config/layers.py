"""Merging layers of configuration and validating the result, with every problem placed where the user wrote it.

Later layers win, mappings merge key by key, everything else is replaced:
defaults < base < environment < study < sampled values < ``--set``.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from training.config.schema import JobConfig
from training.config.source import KeyPath, Layer, parse_setting
from training.errors import ConfigError, Problem

Model = TypeVar("Model", bound=BaseModel)


def merge(layers: Iterable[Layer]) -> Layer:
    """One layer from many; later ones win."""
    merged = Layer()
    for layer in layers:
        _merge_into(merged.values, layer.values)
        merged.places.update(layer.places)
        merged.problems.extend(layer.problems)
    return merged


def _merge_into(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            inner = target.get(key)
            target[key] = inner if isinstance(inner, dict) else {}
            _merge_into(target[key], value)
        else:
            target[key] = value


def settings_layer(settings: Iterable[str]) -> Layer:
    """The layer of ``--set key.path=value`` arguments; malformed ones are among its problems."""
    return merge(_setting(setting, f"--set {setting}") for setting in settings)


def options_layer(options: Mapping[str, str]) -> Layer:
    """The layer of command-line options that stand for a key: ``{"budget.trials": "6"}`` came from ``--trials 6``."""
    return merge(_setting(f"{key}={text}", f"--{key.split('.')[-1]} {text}") for key, text in options.items())


def _setting(setting: str, place: str) -> Layer:
    key, equals, text = setting.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        return Layer(problems=[Problem(place=place, message="must read key.path=value")])
    try:
        return parse_setting(path, text, name=place)
    except ConfigError as error:
        return Layer(problems=[Problem(place=place, message=problem.message) for problem in error.problems])


def assign(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set ``values[a][b][c] = value`` for path (a, b, c), making mappings on the way."""
    *parents, last = path
    for key in parents:
        inner = values.get(key)
        values[key] = inner if isinstance(inner, dict) else {}
        values = values[key]
    values[last] = value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf: ``("optimizer.lr", 0.001)``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def job_config(layer: Layer) -> JobConfig:
    """The validated job of a merged layer. Raises ConfigError with all problems."""
    return validate(JobConfig, layer)


def validate(model: type[Model], layer: Layer) -> Model:
    """Validate `layer` against `model`. Raises ConfigError with all problems, each at its file and line."""
    problems = list(layer.problems)
    try:
        validated = model.model_validate(layer.values)
    except ValidationError as error:
        raise ConfigError(problems + problems_of(error, model, layer)) from error
    if problems:
        raise ConfigError(problems)
    return validated


def problems_of(error: ValidationError, model: type[BaseModel], layer: Layer) -> list[Problem]:
    """Pydantic's errors as problems: file and line, dotted key, rule, value, nearest valid key."""
    problems: list[Problem] = []
    for path, details in _by_path(error, layer.values):
        problem = Problem(place=layer.place_of(path), message=_message(details, path, model))
        if problem not in problems:
            problems.append(problem)
    return problems


def _by_path(error: ValidationError, values: Any) -> Iterator[tuple[KeyPath, list[ErrorDetails]]]:
    """Pydantic's errors with where they are; those of a union's alternatives together, the ones that came furthest."""
    groups: dict[KeyPath | int, list[tuple[KeyPath, ErrorDetails]]] = {}
    for number, detail in enumerate(error.errors(include_url=False)):
        path, union = _path_in_values(detail, values)
        groups.setdefault(number if union is None else union, []).append((path, detail))
    for alternatives in groups.values():
        deepest = max((path for path, _ in alternatives), key=len)
        yield deepest, [detail for path, detail in alternatives if path == deepest]


def _path_in_values(detail: ErrorDetails, values: Any) -> tuple[KeyPath, KeyPath | None]:
    """What is really there of an error's location, and, when it went into a union, where that is.

    Inside a union the location also names the alternative ("int", "list[int]"), which stands in no file.
    """
    path: KeyPath = ()
    union: KeyPath | None = None
    for key in detail["loc"]:
        if isinstance(values, dict) and key in values:
            path, values = (*path, key), values[key]
        elif isinstance(values, list) and isinstance(key, int):
            path, values = (*path, key), values[key]
        elif detail["type"] == "missing":
            path = (*path, key)
        elif union is None:
            union = path
    return path, union


def _message(details: list[ErrorDetails], path: KeyPath, model: type[BaseModel]) -> str:
    detail, dotted = details[0], ".".join(str(key) for key in path)
    if detail["type"] == "extra_forbidden":
        return f"{dotted} is not a known key{suggestion(str(path[-1]), keys_at(model, path[:-1]))}"
    if detail["type"] == "missing":
        return f"{dotted} is required"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    first, *others = dict.fromkeys(_rule(alternative) for alternative in details)
    alternatives = [first, *(rule.removeprefix("must be ") for rule in others)]
    rule = " or ".join([", ".join(alternatives[:-1]), alternatives[-1]]) if others else first
    return f"{dotted} {rule}, not {_short(detail['input'])}"


def _rule(detail: ErrorDetails) -> str:
    if detail["type"] in {"model_type", "dict_type"}:
        return "must be a mapping of keys to values"
    return re.sub(r"^\w+ should ", "must ", re.sub(r" after validation, not \d+$", "", detail["msg"]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'devices'?``, or the list of valid words when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}" if known else ""


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that are valid at `path` of `model`."""
    current: Any = model
    for key in path:
        current = _field_type(current, str(key))
        if current is None:
            return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _field_type(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if key not in fields:
        return None
    annotation = fields[key].annotation
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def find_file(name: str, *, beside: Path | None = None) -> Path | None:
    """`name` in the working directory, beside the file that mentions it, or in the project's checkout."""
    checkout = Path(__file__).resolve().parents[2]
    for folder in (Path(), *([beside.parent] if beside else []), checkout):
        candidate = folder / name
        if os.path.isfile(candidate):  # unlike Path.is_file, also False for names no file system takes
            return candidate
    return None
