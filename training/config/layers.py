"""Merging layers of configuration and validating the result, with every problem placed where the user wrote it.

Later layers win, mappings merge key by key, everything else is replaced:
defaults < base < environment < study < sampled values < ``--set``.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from training.config.schema import JobConfig
from training.config.source import MAX_PROBLEMS, KeyPath, Layer, parse_setting
from training.errors import ConfigError, Problem

CHECKOUT = Path(__file__).resolve().parents[2]
Model = TypeVar("Model", bound=BaseModel)
MAX_REPAIRS = 5
"""Rounds of taking away what breaks a rule; a rule between fields is checked only when each of them is right."""


def merge(layers: Iterable[Layer]) -> Layer:
    """One layer from many; later ones win."""
    merged = Layer()
    for layer in layers:
        _forget_replaced(merged, layer.places)
        _merge_into(merged.values, layer.values)
        merged.places.update(layer.places)
        merged.problems.extend(layer.problems)
    return merged


def _forget_replaced(merged: Layer, paths: Iterable[KeyPath]) -> None:
    """A plain value that becomes a mapping no longer stands where it stood."""
    for path in paths:
        value: Any = merged.values
        for length, key in enumerate(path[:-1], start=1):
            value = value.get(key) if isinstance(value, dict) else None
            if not isinstance(value, dict):
                merged.places.pop(path[:length], None)


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
    # Nothing at all is YAML for null, which would quietly take the option's key away.
    given = {key: text if text.strip() else "''" for key, text in options.items()}
    return merge(_setting(f"{key}={text}", f"--{key.split('.')[-1]} {text}") for key, text in given.items())


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


def valid_part(model: type[Model], layer: Layer, *, required: Layer | None = None) -> Model | None:
    """The model without the values that break a rule, to look at the others; None when there is no such model.

    What is missing then is taken from `required`.
    """
    values = copy.deepcopy(layer.values)
    for _ in range(MAX_REPAIRS):
        try:
            return model.model_validate(merge([required or Layer(), Layer(values)]).values)
        except ValidationError as error:
            if not any([_remove(values, path) for path, _ in list(_by_path(error, values))]):
                return None
    return None


def _remove(values: Any, path: KeyPath) -> bool:
    """Delete the entry at `path`, or what holds it when that is no mapping; whether there was one."""
    for depth, key in enumerate(path, start=1):
        if not isinstance(values, dict) or key not in values:
            return False
        if depth == len(path) or not isinstance(values[key], dict):
            del values[key]
            return True
        values = values[key]
    return False


def in_reading_order(problems: Sequence[Problem]) -> list[Problem]:
    """File by file as they came, and line by line in each."""
    files = [problem.place.partition(":")[0] for problem in problems]

    def order(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.place.partition(":")
        return files.index(file), int(line) if line.isdecimal() else 0

    return sorted(problems, key=order)


def problems_of(error: ValidationError, model: type[BaseModel], layer: Layer) -> list[Problem]:
    """Pydantic's errors as problems: file and line, dotted key, rule, value, nearest valid key."""
    problems: list[Problem] = []
    for number, (path, details) in enumerate(_by_path(error, layer.values)):
        if number == MAX_PROBLEMS:
            return [*problems, Problem(place=layer.place_of(path), message="and more mistakes from here on")]
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
    *_, last = detail["loc"] or (None,)
    for key in detail["loc"]:
        if isinstance(values, dict) and key in values:
            path, values = (*path, key), values[key]
        elif isinstance(values, list) and isinstance(key, int):
            path, values = (*path, key), values[key]
        elif detail["type"] == "missing" and key is last:
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
        return _with_key(str(detail["ctx"]["error"]), path)
    own_rules = [str(alternative["ctx"]["error"]) for alternative in details if alternative["type"] == "value_error"]
    if own_rules:
        words = [alternative["ctx"]["expected"] for alternative in details if alternative["type"] == "literal_error"]
        return f"{dotted}: {', or '.join([*own_rules, *words])}"
    first, *others = dict.fromkeys(_rule(alternative) for alternative in details)
    alternatives = [first, *(rule.removeprefix("must be ") for rule in others)]
    rule = " or ".join([", ".join(alternatives[:-1]), alternatives[-1]]) if others else first
    return f"{dotted} {rule}, not {_short(detail['input'])}"


def _with_key(rule: str, path: KeyPath) -> str:
    """`rule`, after the dotted key where it does not say which key it is about."""
    names_key = not path or re.search(rf"\b{re.escape(str(path[-1]))}\b", rule)
    return rule if names_key else f"{'.'.join(map(str, path))}: {rule}"


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
    near = nearest(word, known)
    return f"; did you mean '{near}'?" if near else f"; known: {', '.join(known)}" if known else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), None)


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that are valid at `path` of `model`."""
    found: Any = model
    for key in path:
        found = next((_below(option, str(key)) for option in _options(found) if _below(option, str(key))), None)
    models = [option for option in _options(found) if isinstance(option, type) and issubclass(option, BaseModel)]
    return [field.alias or name for each in models for name, field in each.model_fields.items()]


def _options(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _below(annotation: Any, key: str) -> Any:
    """The type of what `key` leads to in a model or a mapping; None when it leads nowhere."""
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1]
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
    return fields.get(key)


def find_file(name: str, *, beside: Path | None = None) -> Path | None:
    """`name` in the working directory, beside the file that mentions it, or in the project's checkout."""
    for folder in (Path(), *([beside.parent] if beside else []), CHECKOUT):
        candidate = folder / name
        if os.path.isfile(candidate):  # unlike Path.is_file, also False for names no file system takes
            return candidate
    return None
