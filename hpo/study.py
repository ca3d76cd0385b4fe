"""The Optuna study of a definition: created or continued, its sampler by name, and what we keep in its attributes."""

from __future__ import annotations

import functools
import math
import os
import socket
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.distributions import check_distribution_compatibility
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from hpo.definition import StudyDefinition
from hpo.errors import NoBestTrialError, StorageError, StudyChangedError, StudyNotFoundError
from hpo.masking import masked
from hpo.search_space import distribution, grid, sample
from hpo.study_config import ParameterConfig
from training.config import flatten
from training.run_dir import RunDir

CLOCK_STEP_S = 5.0
"""Two readings of when a process began may differ by this much, when the clock was set meanwhile."""
UID, IDENTITY, FOLDER = "hpo:uid", "hpo:definition", "hpo:folder"
"""Study attributes: its unique id, what makes its scores comparable, and its folder of run directories."""
OWNER, SAMPLED, INTERRUPTED = "hpo:owner", "hpo:sampled", "hpo:interrupted"
FOLD_SCORES, FAILURE = "hpo:fold_scores", "hpo:failure"
"""Trial attributes: the process evaluating it, its complete parameters, whether it was cut short; its folds' scores,
why it failed."""


def open_study(definition: StudyDefinition, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """Create the study or continue it. Raises StudyChangedError with the difference when it was made otherwise."""
    config = definition.config
    study = optuna.create_study(
        study_name=config.study, storage=storage, direction=config.objective.direction, load_if_exists=True
    )
    if IDENTITY not in study.user_attrs:
        _initialize(study, definition)
    _refuse_contradictions(study, definition)
    differences = identity_differences(study.user_attrs[IDENTITY], definition.identity())
    if differences:
        raise StudyChangedError(
            f"study '{config.study}' in {masked(_url(storage))} was made from another definition:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nScores would not be comparable: undo the change, or give the study a new name (study: in its file)."
        )
    return study


def load_study(name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """An existing study. Raises StudyNotFoundError naming those that exist."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StudyNotFoundError(
            f"there is no study '{name}' in {masked(_url(storage))} (there: {known});"
            f" run hpo sweep --study {name} first"
        ) from error
    if IDENTITY not in study.user_attrs:
        raise StudyNotFoundError(f"study '{name}' in {masked(_url(storage))} was not made by hpo")
    return study


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """The studies in `storage` that hpo made."""
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    return sorted(summary.study_name for summary in summaries if IDENTITY in summary.user_attrs)


def _initialize(study: optuna.Study, definition: StudyDefinition) -> None:
    if study.get_trials(deepcopy=False) or study.direction.name.lower() != definition.config.objective.direction:
        raise StudyChangedError(
            f"study '{study.study_name}' was not made by this definition; give yours a new name (study: in its file)"
        )
    try:
        folder = RunDir.create(definition.root, study.study_name)
    except OSError as error:
        raise StorageError(f"output.root {definition.root} cannot be written: {error.strerror}") from error
    study.set_user_attr(UID, uuid.uuid4().hex)
    study.set_user_attr(FOLDER, str(folder.path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([definition.config.objective.metric])
    study.set_user_attr(IDENTITY, definition.identity())  # last: its presence says that the others are there


def _refuse_contradictions(study: optuna.Study, definition: StudyDefinition) -> None:
    """A queued trial keeps the values it was queued with; ``--set`` must not train other ones under its name."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        queued = trial.system_attrs.get("fixed_params", {})
        for key, value in definition.pinned.items():
            if queued.get(key, value) != value:
                raise StudyChangedError(
                    f"trial {trial.number} is queued with {key}={queued[key]}, which --set {key}={value} contradicts;"
                    " finish it first, without that --set"
                )


def _url(storage: optuna.storages.BaseStorage) -> str:
    return str(getattr(getattr(storage, "_backend", storage), "url", "the storage"))


def folder_of(study: optuna.Study) -> Path:
    """The folder of the study's run directories."""
    return Path(study.user_attrs[FOLDER])


def identity_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for each incompatible change; wider or narrower ranges and added or removed parameters are compatible."""
    old, new = stored["objective"], wanted["objective"]
    lines = [f"objective.{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]
    for name in sorted(set(stored["search_space"]) & set(wanted["search_space"])):
        before, after = (side["search_space"][name] for side in (stored, wanted))
        try:
            check_distribution_compatibility(_distribution(before), _distribution(after))
        except ValueError:
            lines.append(f"search_space.{name}: {_brief(before)} -> {_brief(after)}")
    if _max_epochs(stored) != _max_epochs(wanted):  # the axis of the reported values (hpo/pruning.py)
        lines.append(f"highest training.epochs: {_max_epochs(stored)} -> {_max_epochs(wanted)}")
    old, new = stored["config"], wanted["config"]
    searched = {*stored["search_space"], *wanted["search_space"]}
    for key in sorted({*old, *new} - searched):
        if old.get(key) != new.get(key):
            lines.append(f"config.{key}: {old.get(key)} -> {new.get(key)}")
    return lines


def _max_epochs(identity: dict[str, Any]) -> Any:
    searched = identity["search_space"].get("training.epochs")
    if searched is None:
        return identity["config"].get("training.epochs")
    return max(searched["int"] or searched["float"] or searched["choice"])


def _distribution(parameter: dict[str, Any]) -> optuna.distributions.BaseDistribution:
    return distribution(ParameterConfig.model_validate(parameter))


def _brief(parameter: dict[str, Any]) -> str:
    return str({key: value for key, value in parameter.items() if value not in (None, False, {})})


def ask(study: optuna.Study, definition: StudyDefinition) -> tuple[optuna.Trial, dict[str, Any]]:
    """The next trial and its hyperparameters, sampled once, here, at full precision."""
    # An interrupted trial and the one queued in its place are one.
    trials = study.get_trials(deepcopy=False)
    done = sum(trial.state is not TrialState.WAITING and INTERRUPTED not in trial.user_attrs for trial in trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        study.sampler = _sampler(definition, done)
        trial = study.ask()
        trial.set_user_attr(OWNER, this_process())
        space = definition.config.search_space
        fixed = {key: value for key, value in flatten(definition.job.model_dump()) if key not in space}
        params = sample(trial, space, fixed)
    trial.set_user_attr(SAMPLED, params)
    return trial, params


def _sampler(definition: StudyDefinition, done: int) -> BaseSampler:
    """The study's sampler for the trial after `done` others.

    Samplers that only draw random numbers get a seed of their own per trial, so a continued sweep samples what an
    uninterrupted one would have, and never the same points again.
    """
    config = definition.config.sampler
    seed = int(np.random.SeedSequence((config.seed, done)).generate_state(1)[0])
    build: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: RandomSampler(seed=seed),
        "tpe": lambda: TPESampler(seed=seed, n_startup_trials=config.startup_trials, group=_is_conditional(definition)),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=config.startup_trials),
        "cmaes": lambda: CmaEsSampler(
            seed=seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False
        ),
        "qmc": lambda: QMCSampler(
            seed=config.seed,
            scramble=True,
            independent_sampler=RandomSampler(seed=seed),  # what was not in the first trial
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
        ),
        "grid": lambda: _Grid(grid(definition.config.search_space, definition.pinned), seed=config.seed),
    }
    sampler = build[config.name]()
    return PartialFixedSampler(definition.pinned, sampler) if definition.pinned else sampler


def _is_conditional(definition: StudyDefinition) -> bool:
    return any(parameter.when for parameter in definition.config.search_space.values())


class _Grid(GridSampler):
    """Optuna's grid, which may only stop a study from inside ``Study.optimize``; the orchestrator looks for itself."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do not stop the study."""


def grid_size(definition: StudyDefinition) -> int | None:
    """Number of points of the grid, or None for other samplers."""
    if definition.config.sampler.name != "grid":
        return None
    return math.prod(len(values) for values in grid(definition.config.search_space, definition.pinned).values())


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards the budget: told, and not cut short by an interruption."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if INTERRUPTED not in trial.user_attrs]


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The completed trial with the best value. Raises NoBestTrialError."""
    try:
        return study.best_trial
    except ValueError as error:
        raise NoBestTrialError(f"study '{study.study_name}' has no completed trial yet; see hpo status") from error


def best_value(study: optuna.Study) -> float | None:
    """Value of the best completed trial, if there is one."""
    try:
        return study.best_value
    except ValueError:
        return None


@functools.cache
def this_process() -> dict[str, Any]:
    """Who is evaluating a trial: host, process id, and when that process began (ids are used again)."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "since": psutil.Process(pid).create_time()}


def interrupt(study: optuna.Study, number: int, params: dict[str, Any]) -> None:
    """Tell a trial that was cut short FAIL, and queue its hyperparameters for the next sweep; not one already told."""
    trial = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    if trial.state.is_finished():
        return
    study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    if SAMPLED in trial.user_attrs:  # else it was cut short while it was sampled, and has nothing to keep
        study.enqueue_trial(params, user_attrs={"hpo:retry_of": number})


def running_here(study: optuna.Study) -> list[FrozenTrial]:
    """The RUNNING trials of this very process."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if trial.user_attrs.get(OWNER) == this_process()]


def recover(study: optuna.Study) -> list[int]:
    """Interrupt the RUNNING trials whose process on this machine is gone (kill -9, reboot); returns their numbers."""
    stale = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not _is_alive(trial.user_attrs.get(OWNER))
    ]
    for trial in stale:
        interrupt(study, trial.number, trial.params)
    return [trial.number for trial in stale]


def _is_alive(owner: dict[str, Any] | None) -> bool:
    if owner is None:  # killed between ask and the first attribute
        return False
    if owner["host"] != socket.gethostname():
        return True  # another machine's; it may well live
    try:
        process = psutil.Process(owner["pid"])
        same = bool(abs(process.create_time() - owner["since"]) < CLOCK_STEP_S)
        return same and process.status() != psutil.STATUS_ZOMBIE  # dead, but nobody waited for it
    except psutil.NoSuchProcess:
        return False
