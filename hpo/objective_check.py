"""What is wrong with the objectives and constraints of a study, and what does not go with several objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo.study_config import ConstraintConfig, ObjectiveConfig, StudyConfig
from training.config import MEASURES, TASK_METRICS, JobConfig, Layer, suggestion
from training.config.source import KeyPath
from training.errors import Problem

ONE_BEST = "with several objectives there is no one best trial to measure by; leave it out"
FOR_ONE: Mapping[KeyPath, str] = {
    ("budget", "target"): ONE_BEST,
    ("budget", "patience"): ONE_BEST,
    ("sampler", "max_history"): "the best trials to keep are those of one objective; leave it out",
}
"""Keys that only one objective may have, and why."""


def objective_problems(config: StudyConfig, job: JobConfig, written: Layer) -> Iterator[Problem]:
    """Each with its place in the study's file."""
    metrics = TASK_METRICS.get(job.task)
    for path, each in _judges(config):
        if metrics and each.metric not in (*metrics, *MEASURES):
            key = ".".join(map(str, path))
            message = (
                f"{key} {each.metric} is not a metric of {job.task}{suggestion(each.metric, [*metrics, *MEASURES])}"
            )
            yield Problem(place=written.place_of(path), message=message)
    yield from _repeated(config, written)
    if len(config.objectives) > 1:
        yield from _unfit_for_several(config, written)
    elif config.stopping.folds == "dominance":
        message = "stopping.folds: dominance is for several objectives; with one, take halving"
        yield Problem(place=written.place_of(("stopping", "folds")), message=message)


def _judges(config: StudyConfig) -> Iterator[tuple[KeyPath, ObjectiveConfig | ConstraintConfig]]:
    """Objectives and constraints, each with the key of its metric."""
    is_list = isinstance(config.objective, list)
    for number, objective in enumerate(config.objectives):
        yield ("objective", *([number] if is_list else []), "metric"), objective
    for number, constraint in enumerate(config.constraints):
        yield ("constraints", number, "metric"), constraint


def _repeated(config: StudyConfig, written: Layer) -> Iterator[Problem]:
    seen = set[str]()
    for path, each in _judges(config):
        name = each.name if isinstance(each, ConstraintConfig) else each.metric
        if name in seen:
            yield Problem(place=written.place_of(path), message=f"{path[0]}: {name} stands twice; keep one")
        seen.add(name)


def _unfit_for_several(config: StudyConfig, written: Layer) -> Iterator[Problem]:
    values: dict[str, Any] = config.model_dump()
    for path, why in FOR_ONE.items():
        section, key = map(str, path)
        if values[section][key] is not None:
            yield Problem(place=written.place_of(path), message=f"{section}.{key}: {why}")
    if config.stopping.epochs != "none":
        message = "stopping.epochs: a curve of several objectives has no rule; leave it out, or write none"
        yield Problem(place=written.place_of(("stopping", "epochs")), message=message)
    if config.stopping.folds not in ("dominance", "none"):
        message = f"stopping.folds: {config.stopping.folds} is for one objective; with several, write dominance or none"
        yield Problem(place=written.place_of(("stopping", "folds")), message=message)
    if config.fidelity is not None:
        message = "fidelity: halving ranks trials by one objective; with several, leave it out"
        yield Problem(place=written.place_of(("fidelity",)), message=message)
    if config.sampler.name == "cmaes":
        message = "sampler.name: cmaes knows one objective; with several, take tpe, nsga2, gp, random, qmc or grid"
        yield Problem(place=written.place_of(("sampler", "name")), message=message)
