"""The flat form of a job's configuration: ``learning_rate`` for ``optimizer.lr``, all keys on one level.

    {"task_name": "lm_tiny", "learning_rate": 5e-5, "batch_size": 4, "epochs": 10, "strategy": "ddp", "devices": 2}

``task_name`` is a file in ``config/tasks`` (task, data and model, over which the other keys win) or a task.
``batch_size`` is of one rank's micro-batch, as PyTorch Lightning counts: the global batch is batch_size x devices x
accumulate_grad_batches, with ``devices: auto`` counted as one; from then on it means the same on any number of devices.
"""

from __future__ import annotations

from typing import Any

from training.config.layers import assign, find_file, merge
from training.config.source import KeyPath, Layer, read_layer
from training.errors import Problem

BATCH_SIZE, TASK_NAME = "batch_size", "task_name"
GLOBAL_BATCH_SIZE = ("training", "global_batch_size")
PLACES: dict[str, KeyPath] = {
    "learning_rate": ("optimizer", "lr"),
    "weight_decay": ("optimizer", "weight_decay"),
    **{key: ("training", key) for key in ("epochs", "precision", "accumulate_grad_batches", "engine")},
    **{key: ("training", key) for key in ("gradient_checkpointing", "max_grad_norm", "compile")},
    **{key: ("distributed", key) for key in ("strategy", "devices", "num_nodes", "backend", "accelerator")},
}
"""Where each flat key stands in a job's configuration, but for the two above."""


def nested(layer: Layer) -> Layer:
    """`layer` with its flat keys where the schema has them; places stay those of the file. Raises ConfigError."""
    moved, below = Layer(problems=list(layer.problems)), Layer()
    for key, value in layer.values.items():
        path = PLACES.get(key, (key,))
        if key == BATCH_SIZE:
            path, value = GLOBAL_BATCH_SIZE, _global_batch_size(layer, value)
        elif key == TASK_NAME:
            path, preset = ("task",), find_file(f"config/tasks/{value}.yaml")
            if preset is not None:
                below = read_layer(preset)
                continue
        if path != (key,) and _holds(layer.values, path):
            message = f"{key} and {'.'.join(map(str, path))} say the same; keep one"
            moved.problems.append(Problem(place=layer.place_of((key,)), message=message))
        merged = Layer()
        assign(merged.values, tuple(map(str, path)), value)
        places = {(*path, *place[1:]): where for place, where in layer.places.items() if place[:1] == (key,)}
        moved = merge([moved, Layer(merged.values, places)])
    return merge([below, moved])


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
