"""A study as defined by its files and the command line: everything merged and checked before anything runs.

defaults < base < environment < study < sampled values < ``--set``
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from hpo.criteria import Criteria
from hpo.environment import ENVIRONMENTS, OVERLAYS, detect_environment
from hpo.errors import StudyNotFoundError
from hpo.masking import masked
from hpo.objective_check import objective_problems
from hpo.search_space import VOLATILE, distribution, grid, space_problems
from hpo.study_config import StudyConfig
from training.config import (
    MEASURES,
    JobConfig,
    Layer,
    assign,
    find_file,
    flatten,
    in_reading_order,
    job_config,
    merge,
    nested,
    options_layer,
    read_layer,
    settings_layer,
    suggestion,
    valid_part,
    validate,
)
from training.config.source import MAX_PROBLEMS
from training.errors import ConfigError, Problem

Value = TypeVar("Value")

ANY_STUDY = Layer({"study": "any", "objective": {"metric": "loss", "direction": "minimize"}})
"""What stands in for a mistake in a required key while the rest of a study is looked at; wrong for no task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyDefinition:
    """A checked study. `job` is the base of every trial, `settings` what ``--set`` fixes above any sampled value."""

    config: StudyConfig
    job: JobConfig
    environment: str
    layer: Layer
    settings: Layer
    space: Layer = Layer()
    """Where each parameter of the search space stands."""

    @property
    def root(self) -> Path:
        """Folder of everything that is written."""
        return Path(self.job.output.root)

    @property
    def criteria(self) -> Criteria:
        """What trials are judged by."""
        return Criteria(self.config.objectives, self.config.constraints)

    @property
    def pinned(self) -> dict[str, Any]:
        """Searched parameters that ``--set`` holds fixed."""
        return _pinned(self.config, self.settings)

    @property
    def max_epochs(self) -> int:
        """Epochs of the longest trial."""
        return _max_epochs(self.config, self.job)

    def trial_config(self, params: Mapping[str, Any]) -> JobConfig:
        """The complete job of one trial. Raises ConfigError when the sampled values do not go together."""
        sampled = Layer()
        for key, value in params.items():
            path = tuple(key.split("."))
            assign(sampled.values, path, value)
            sampled.places[path] = f"sampled {key}={value}"
        config = job_config(merge([self.layer, sampled, self.settings]))
        asked = [name for name in MEASURES if name in self.criteria.metrics and name not in config.output.measure]
        return config.with_values({"output.measure": [*config.output.measure, *asked]}) if asked else config

    def stored(self) -> dict[str, Any]:
        """All of it as plain values but passwords, for `joined_definition`."""
        uri = self.config.mlflow
        without_secret = uri if uri and masked(uri) == uri else None
        return {
            "study": self.config.model_dump(by_alias=True) | {"storage": None, "mlflow": without_secret},
            "job": self.job.model_dump(),
            "environment": self.environment,
            "settings": self.settings.values,
        }

    def identity(self) -> dict[str, Any]:
        """What makes scores comparable; a study in the storage must not be continued with another one."""
        fixed = {
            key: value
            for key, value in flatten(self.job.model_dump())
            if not key.startswith(VOLATILE) and key not in self.config.search_space
        }
        space = {key: parameter.model_dump(by_alias=True) for key, parameter in self.config.search_space.items()}
        objectives = [objective.model_dump() for objective in self.config.objectives]
        constraints = [constraint.model_dump() for constraint in self.config.constraints]
        return {
            "objective": objectives if objectives[1:] else objectives[0],
            **({"constraints": constraints} if constraints else {}),
            "search_space": space,
            "config": fixed,
            "max_epochs": self.max_epochs,
            "base_epochs": self.job.training.epochs,
        }


def load_definition(
    study: str,
    *,
    environment: str | None = None,
    settings: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> StudyDefinition:
    """Read, merge and check the study named `study` (in ``studies/``, or a path).

    `settings` are ``--set`` arguments (configuration of the job); `options` are keys of the study itself
    that have an option of their own, such as ``budget.trials``. Raises ConfigError with every problem found in all
    files, and StudyNotFoundError.
    """
    path = find_study(study)
    problems: list[Problem] = []
    chosen = settings_layer(settings)
    written = merge([read_layer(path), options_layer(options)])
    config = _collect(problems, lambda: validate(StudyConfig, written))
    environment = environment or detect_environment()
    layer = _job_layers(written, environment, path, problems)
    whole = merge([layer, chosen])
    job = _collect(problems, lambda: job_config(whole))
    # What is sound of a part with mistakes is looked at with the rest, so that its other mistakes are told as well.
    some_config = config or valid_part(StudyConfig, written, required=ANY_STUDY)
    some_job = job or valid_part(JobConfig, whole)
    if some_job:
        problems += _reserved_problems(some_job, whole)
    if some_config and some_job:
        problems += islice(_study_problems(some_config, some_job, written, chosen), MAX_PROBLEMS)
    if problems or config is None or job is None:
        raise ConfigError(in_reading_order(problems))
    return StudyDefinition(
        config=config,
        job=job,
        environment=environment,
        layer=layer,
        settings=chosen,
        space=written.under("search_space"),
    )


def _collect(problems: list[Problem], read: Callable[[], Value]) -> Value | None:
    """What `read` returns; its problems join the others, so that the user sees all of them at once."""
    try:
        return read()
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def find_study(study: str) -> Path:
    """The file of a study given by name or path. Raises StudyNotFoundError naming the studies there are."""
    for name in (study, f"studies/{study}.yaml"):
        path = find_file(name)
        if path is not None:
            return path
    folder = Path("studies")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise StudyNotFoundError(f"--study {study}: neither a file nor a study in studies/{suggestion(study, known)}")


def load_job(path: Path, *, environment: str | None = None, settings: Sequence[str] = ()) -> JobConfig:
    """The checked job of one configuration file (nested or flat), without a study. Raises ConfigError.

    The file wins over the detected environment, and an `environment` asked for wins over the file.
    """
    problems: list[Problem] = []
    overlay = _collect(problems, lambda: _environment_layer(environment or detect_environment()))
    written = _collect(problems, lambda: nested(read_layer(path)))
    if written and not written.values and not written.problems:
        raise ConfigError([Problem(place=str(path), message="says nothing; name a task, such as task: embedding")])
    if written and {"search_space", "objective"} <= written.values.keys():
        raise ConfigError([Problem(place=str(path), message=f"is a study; search it with hpo sweep --study {path}")])
    layers = [*([overlay, written] if environment is None else [written, overlay]), settings_layer(settings)]
    job = _collect(problems, lambda: job_config(merge(layer for layer in layers if layer)))
    if problems or job is None:
        raise ConfigError(problems)
    return job


def has_file(study: str) -> bool:
    """Whether there is a file of a study by that name or path."""
    return any(find_file(name) for name in (study, f"studies/{study}.yaml"))


def joined_definition(stored: Mapping[str, Any], *, settings: Sequence[str] = ()) -> StudyDefinition:
    """The definition that a study keeps; `settings` say where jobs run here. Raises ConfigError."""
    chosen = settings_layer(settings)
    for key in dict(flatten(chosen.values)):
        if not key.startswith(VOLATILE):
            message = "a worker does what the study says; --set takes only distributed.*, output.*, data.num_workers"
            raise ConfigError([Problem(place=f"--set {key}", message=message)])
    layer = merge([Layer(stored["job"]), chosen])
    job = job_config(layer)
    if problems := [*_reserved_problems(job, layer)]:
        raise ConfigError(problems)
    return StudyDefinition(
        config=StudyConfig.model_validate(stored["study"]),
        job=job,
        environment=stored["environment"],
        layer=layer,
        settings=merge([Layer(stored["settings"]), chosen]),
    )


def base_job(*, environment: str | None = None, settings: Sequence[str] = ()) -> JobConfig:
    """The job of the base configuration alone, or of the defaults where there is none. Raises ConfigError."""
    path = find_file(StudyConfig.model_fields["base"].default)
    if path is not None:
        return load_job(path, environment=environment or detect_environment(), settings=settings)
    return job_config(settings_layer(settings))


def _job_layers(written: Layer, environment: str, path: Path, problems: list[Problem]) -> Layer:
    """base < environment < study, as one layer."""
    base_name = written.values.get("base", StudyConfig.model_fields["base"].default)
    base = find_file(str(base_name), beside=path)
    if base is None:
        place = written.place_of(("base",))
        problems.append(
            Problem(place=place, message=f"base: there is no file '{base_name}'; give a path to a YAML file")
        )
    layers = [
        _collect(problems, lambda: read_layer(base)) if base else None,
        _collect(problems, lambda: _environment_layer(environment)),
        written.under("config"),
        written.under("cross_validation").below("cross_validation"),
    ]
    return merge(layer for layer in layers if layer)


def _environment_layer(environment: str) -> Layer:
    environment = OVERLAYS.get(environment, environment)
    if environment not in ENVIRONMENTS:
        message = f"there is no environment '{environment}'{suggestion(environment, ENVIRONMENTS)}"
        raise ConfigError([Problem(place="--env", message=message)])
    path = find_file(f"config/env/{environment}.yaml")
    return read_layer(path) if path else Layer()


def _reserved_problems(job: JobConfig, layer: Layer) -> Iterator[Problem]:
    """Keys of a job that the sweep sets."""
    split = job.cross_validation
    if split.fold is not None:
        place = layer.place_of(("cross_validation", "fold"))
        yield Problem(place=place, message="cross_validation.fold is set by the sweep, once per fold; remove it")
    if split.score != "fold":
        place = layer.place_of(("cross_validation", "score"))
        yield Problem(place=place, message="cross_validation.score: a search never sees the test split; remove it")
    if job.output.pause_after is not None:
        place = layer.place_of(("output", "pause_after"))
        message = "output.pause_after is set by the sweep, at the rungs of fidelity; remove it"
        yield Problem(place=place, message=message)


def _study_problems(config: StudyConfig, job: JobConfig, written: Layer, settings: Layer) -> Iterator[Problem]:
    """What only the study and the job together can show."""
    yield from objective_problems(config, job, written)
    epochs = config.search_space.get("training.epochs")
    if 0 in ((epochs.bounds or epochs.choice or ()) if epochs else (job.training.epochs,)):
        place = merge([written, settings]).place_of(("search_space", "training.epochs") if epochs else ("config",))
        yield Problem(
            place=place, message="training.epochs: a search trains for at least 1; 0 only scores, in hpo train"
        )
    yield from _fidelity_problems(config, job, written)
    yield from _rung_problems(config, job, written, settings)
    yield from space_problems(config.search_space, job, written.under("search_space"))
    if config.sampler.name == "grid":
        with _as_problem(written.place_of(("search_space",))) as found:
            grid(config.search_space, _pinned(config, settings))
        yield from found
    for key, value in _pinned(config, settings).items():
        if not _contains(config.search_space[key], value):
            place = settings.place_of(tuple(key.split(".")))
            yield Problem(place=place, message=f"{value!r} is outside what the study searches for {key}")


def _fidelity_problems(config: StudyConfig, job: JobConfig, written: Layer) -> Iterator[Problem]:
    if config.fidelity is None:
        return
    asked, epochs, place = config.fidelity.epochs, job.training.epochs, written.place_of(("fidelity", "epochs"))
    if "training.epochs" in config.search_space:
        yield Problem(place=place, message="fidelity.epochs: training.epochs is searched; leave one of them out")
    elif asked.max not in (None, epochs):
        message = f"fidelity.epochs.max {asked.max} is not training.epochs {epochs}, for which the schedule is made"
        yield Problem(place=place, message=f"{message}; write the same, or leave max out")
    elif asked.min >= epochs:
        message = f"fidelity.epochs.min {asked.min} must be below training.epochs {epochs}"
        yield Problem(place=place, message=message)
    if "epochs" in config.stopping.model_fields_set and config.stopping.epochs != "none":
        place = written.place_of(("stopping", "epochs"))
        yield Problem(place=place, message="stopping.epochs: fidelity decides inside folds; leave this out")
    for key, instead in (("keep", "epochs.eta"), ("disk", "disk")):
        if getattr(config.stopping, key) != type(config.stopping).model_fields[key].default:
            message = f"stopping.{key}: fidelity halves by its own rungs; write fidelity.{instead} instead"
            yield Problem(place=written.place_of(("stopping", key)), message=message)


def _rung_problems(config: StudyConfig, job: JobConfig, written: Layer, settings: Layer) -> Iterator[Problem]:
    """A first halving that no trial comes to."""
    stopping, key = config.stopping, "training.epochs"
    is_asked = stopping.epochs in ("asha", "hyperband") and "min_epochs" in stopping.model_fields_set
    if config.fidelity is not None or not is_asked:
        return
    is_searched = key in config.search_space and key not in _pinned(config, settings)
    epochs = _max_epochs(config, job) if is_searched else job.training.epochs
    if 0 < epochs <= stopping.min_epochs:
        longest = f"{epochs}, the most that is searched for {key}" if is_searched else f"{key} {epochs}"
        message = (
            f"stopping.min_epochs {stopping.min_epochs} must be below {longest}: {stopping.epochs} would stop nothing"
        )
        yield Problem(place=written.place_of(("stopping", "min_epochs")), message=message)


def _max_epochs(config: StudyConfig, job: JobConfig) -> int:
    """Epochs of the longest trial."""
    searched, fixed = config.search_space.get("training.epochs"), job.training.epochs
    if searched is None:
        return fixed
    values = searched.bounds or [value for value in searched.choice or () if isinstance(value, int)]
    return max([fixed if searched.when else 1, *map(int, values)])


def _pinned(config: StudyConfig, settings: Layer) -> dict[str, Any]:
    return {key: value for key, value in flatten(settings.values) if key in config.search_space}


def _contains(parameter: Any, value: Any) -> bool:
    known = distribution(parameter)
    with contextlib.suppress(ValueError, TypeError):
        return bool(known._contains(known.to_internal_repr(value)))
    return False


@contextlib.contextmanager
def _as_problem(place: str) -> Iterator[list[Problem]]:
    found: list[Problem] = []
    try:
        yield found
    except ValueError as error:
        found.append(Problem(place=place, message=str(error)))
