"""The flat form of a job's configuration: ``learning_rate`` for ``optimizer.lr``, all keys on one level.

    {"task_name": "lm_tiny", "learning_rate": 5e-5, "batch_size": 4, "epochs": 10, "strategy": "ddp", "devices": 2}

``task_name`` is a file in ``config/tasks`` (task, data and model, over which the other keys win) or a task.
``batch_size`` is of one rank's micro-batch, as PyTorch Lightning counts: the global batch is batch_size x devices x
accumulate_grad_batches, with ``devices: auto`` counted as one; from then on it means the same on any number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.config.layers import CHECKOUT, assign, find_file, merge, nearest
from training.config.schema import TASK_METRICS, JobConfig
from training.config.source import KeyPath, Layer, read_layer
from training.errors import Problem

BATCH_SIZE, TASK_NAME = "batch_size", "task_name"
PLACES: dict[str, KeyPath] = {
    TASK_NAME: ("task",),
    BATCH_SIZE: ("training", "global_batch_size"),
    "learning_rate": ("optimizer", "lr"),
    "weight_decay": ("optimizer", "weight_decay"),
    **{key: ("training", key) for key in ("epochs", "precision", "accumulate_grad_batches", "engine")},
    **{key: ("training", key) for key in ("gradient_checkpointing", "max_grad_norm", "compile")},
    **{key: ("distributed", key) for key in ("strategy", "devices", "share_devices")},
    **{key: ("distributed", key) for key in ("num_nodes", "backend", "accelerator")},
}
"""Where each flat key stands in a job's configuration."""


def nested(layer: Layer) -> Layer:
    """`layer` with its flat keys where the schema has them; places stay those of the file. Raises ConfigError."""
    misspelled = dict(_misspelled(layer.values))
    problems = [Problem(place=layer.place_of((key,)), message=message) for key, message in misspelled.items()]
    preset = find_file(f"config/tasks/{layer.values.get(TASK_NAME)}.yaml")
    moved = [key for key in layer.values if key in PLACES and key not in misspelled]
    below = read_layer(preset) if preset else Layer()
    flat = [_moved(layer, key) for key in moved if key != TASK_NAME or not preset]
    kept = {key: value for key, value in layer.values.items() if key not in {*moved, *misspelled}}
    places = {path: place for path, place in layer.places.items() if path and path[0] in kept}
    return merge([below, Layer(problems=[*layer.problems, *problems]), *flat, Layer(kept, places)])


def task_names() -> set[str]:
    """What `task_name` may be: a task, or a file in ``config/tasks``."""
    return {*TASK_METRICS, *(path.stem for folder in (Path(), CHECKOUT) for path in folder.glob("config/tasks/*.yaml"))}


def _moved(layer: Layer, key: str) -> Layer:
    """A flat key of `layer`, where the schema has it."""
    value = layer.values[key]
    if key == BATCH_SIZE:
        value = _global_batch_size(layer, value)
    path, moved = PLACES[key], Layer()
    if _holds(layer.values, path):
        message = f"{key} and {'.'.join(map(str, path))} say the same; keep one"
        moved.problems.append(Problem(place=layer.place_of((key,)), message=message))
    assign(moved.values, tuple(map(str, path)), value)
    places = {(*path, *place[1:]): where for place, where in layer.places.items() if place[:1] == (key,)}
    moved.places.update(places)
    return moved


def _misspelled(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and a task that are nearly known ones, with what was meant; the schema refuses what is near none."""
    for key in values:
        meant = None if key in JobConfig.model_fields or key in PLACES else nearest(str(key), PLACES)
        if meant:
            yield key, f"{key} is not a known key; did you mean '{meant}'?"
    name, tasks = str(values.get(TASK_NAME)), task_names()
    flat = next((key for key in values if key in PLACES), None)
    if flat is not None and not {TASK_NAME, "task"} & values.keys():
        yield TASK_NAME, f"{TASK_NAME} is required beside {flat}: one of {', '.join(sorted(tasks))}"
    if name not in tasks and nearest(name, tasks):
        yield TASK_NAME, f"{TASK_NAME} '{name}' is not known; did you mean '{nearest(name, tasks)}'?"


def _holds(values: Any, path: KeyPath) -> bool:
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _global_batch_size(layer: Layer, batch_size: Any) -> Any:
    """What is not a number stays as it is, for the schema to refuse."""
    devices = layer.values.get("devices", 1)
    ranks = len(devices) if isinstance(devices, list) else devices if type(devices) is int else 1
    parts = layer.values.get("accumulate_grad_batches", 1)
    parts = 1 if parts == "auto" else parts
    nodes = layer.values.get("num_nodes", 1)
    if not all(type(number) is int and number > 0 for number in (batch_size, ranks, parts, nodes)):
        return batch_size
    return batch_size * ranks * parts * nodes
