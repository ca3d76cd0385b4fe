"""Tasks: what to learn from which samples. The built-in ones by name, a user's own as ``package.module:Class``."""

from __future__ import annotations

import importlib

from training.errors import ConfigError, Problem
from training.tasks.task import ContrastiveModule, Representations, Task, TrainingModule

__all__ = ["ContrastiveModule", "Representations", "Task", "TrainingModule", "load_task"]

_BUILT_IN = {
    "text_classification": "training.tasks.text_classification:TextClassification",
    "image_classification": "training.tasks.image_classification:ImageClassification",
    "language_modeling": "training.tasks.language_modeling:LanguageModeling",
    "embedding": "training.tasks.embedding:Embedding",
}


def load_task(name: str) -> Task:
    """The task `name`. Raises ConfigError when its module or class does not exist; errors inside it pass through."""
    module_name, _, class_name = _BUILT_IN.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise _no_task(name, f"there is no module {error.name}; start hpo where it can be imported") from error
    if not hasattr(module, class_name):
        raise _no_task(name, f"{module_name} has no class {class_name}")
    task: Task = getattr(module, class_name)()
    return task


def _no_task(name: str, reason: str) -> ConfigError:
    return ConfigError([Problem(place="task", message=f"'{name}' cannot be loaded: {reason}")])
