"""The Optuna study of a definition: created or continued, its sampler by name, and what we keep in its attributes."""

from __future__ import annotations

import contextlib
import math
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.console import counted
from hpo.definition import StudyDefinition
from hpo.errors import HpoError, NoBestTrialError, StorageError, StudyChangedError, StudyNotFoundError
from hpo.fold_ledger import FoldRow, FoldState
from hpo.identity import identity_differences
from hpo.launchers import job_id_prefix
from hpo.ledger import SUCCEEDS, Held, ledger_of
from hpo.masking import masked
from hpo.sampling import sampled_values, sampler_for
from hpo.tally import (
    AUDIT,
    CONTINUES,
    INTERRUPTED,
    LOSSES,
    MICRO_BATCH,
    NOT_BEFORE,
    RETRIES,
    REVIVES,
    SAMPLED,
    UNTIL,
    tally_of,
)
from training.errors import Failure, FailureKind
from training.job_processes import kill_processes
from training.run_dir import RunDir

UID, IDENTITY, FOLDER, DEFINITION = "hpo:uid", "hpo:definition", "hpo:folder", "hpo:study"
"""Study attributes: its unique id, what makes its scores comparable, its folder of run directories, and all of its
definition as it was last swept, for workers."""
OWNER, FAILURE, SPLIT_ID, REASON = "hpo:owner", "hpo:failure", "hpo:split_id", "hpo:reason"
"""Trial attributes: the process that evaluated it, for people; why it failed, the identity of the samples and folds it
was scored on, why it was stopped. Others are in hpo/tally.py."""
INHERITED = (REVIVES, UNTIL, AUDIT, RETRIES, LOSSES, MICRO_BATCH, NOT_BEFORE)
"""By a trial that goes on with another one."""
LOCK_WAIT_S, LOCK_POLL_S = 10.0, 0.01
"""How long a sweep waits until another one beside it has done asking, and how often it looks."""


def open_study(
    definition: StudyDefinition,
    storage: optuna.storages.BaseStorage,
    say: Callable[[str], None] = lambda text: None,
) -> optuna.Study:
    """Create the study or continue it. Raises StudyChangedError with the difference when it was made otherwise; without
    a score it is redefined, and `say` hears of that."""
    config = definition.config
    study = optuna.create_study(
        study_name=config.study,
        storage=storage,
        directions=[objective.direction for objective in config.objectives],
        load_if_exists=True,
    )
    if IDENTITY not in study.user_attrs:
        with _only_process(definition):  # or two that begin together would each give it a folder
            if IDENTITY not in study.user_attrs:
                _initialize(study, definition)
    _refuse_contradictions(study, definition)
    differences = identity_differences(study.user_attrs[IDENTITY], definition.identity())
    if differences and _may_be_redefined(study, definition, differences):
        _set_metric_names(study, definition)
        study.set_user_attr(IDENTITY, definition.identity())
        say(f"the definition changed: {', '.join(differences)}")
    elif differences:
        raise StudyChangedError(
            f"study '{config.study}' in {masked(_url(storage))} was made from another definition:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nScores would not be comparable: undo the change (file, --set, --folds), or give the study a new name"
            " (study: in its file)."
        )
    if study.user_attrs.get(DEFINITION) != definition.stored():
        study.set_user_attr(DEFINITION, definition.stored())
    return study


def definition_of(study: optuna.Study) -> dict[str, Any]:
    """The definition with which `study` was last begun or continued."""
    if DEFINITION not in study.user_attrs:
        raise StudyChangedError(f"study '{study.study_name}' keeps no definition to join; continue it with hpo sweep")
    return dict(study.user_attrs[DEFINITION])


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
    return sorted(study.study_name for study in storage.get_all_studies() if IDENTITY in study.user_attrs)


@contextlib.contextmanager
def _only_process(definition: StudyDefinition) -> Iterator[None]:
    """One process at a time is in this block, of those with the same output folder. Raises StorageError."""
    try:
        definition.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(definition.root / f".{definition.config.study}.lock").acquire()
    except OSError as error:
        raise StorageError(f"output.root {definition.root} cannot be written: {error.strerror}") from error
    with lock:
        yield


def _initialize(study: optuna.Study, definition: StudyDefinition) -> None:
    if study.get_trials(deepcopy=False) or not _has_directions_of(study, definition):
        raise StudyChangedError(
            f"study '{study.study_name}' was not made by this definition; give yours a new name (study: in its file)"
        )
    try:
        folder = RunDir.create(definition.root, study.study_name)
    except OSError as error:
        raise StorageError(f"output.root {definition.root} cannot be written: {error.strerror}") from error
    study.set_user_attr(UID, uuid.uuid4().hex)
    study.set_user_attr(FOLDER, str(folder.path))
    _set_metric_names(study, definition)
    study.set_user_attr(IDENTITY, definition.identity())  # last: its presence says that the others are there


def _has_directions_of(study: optuna.Study, definition: StudyDefinition) -> bool:
    directions = [direction.name.lower() for direction in study.directions]
    return directions == [objective.direction for objective in definition.config.objectives]


def _set_metric_names(study: optuna.Study, definition: StudyDefinition) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.metric for objective in definition.config.objectives])


def _may_be_redefined(study: optuna.Study, definition: StudyDefinition, differences: list[str]) -> bool:
    """While a study has no score there is none to compare with: a mistake in its definition can be corrected.

    A complete fold's score says of which configuration it is, but not by which objective. Search space and directions
    are Optuna's, which changes neither.
    """
    trials, unscored = study.get_trials(deepcopy=False), (TrialState.FAIL, TrialState.WAITING)
    if any(trial.state not in unscored for trial in trials) or not _has_directions_of(study, definition):
        return False
    if any(line.startswith("objective") for line in differences):
        rows = (row for trial in trials for row in ledger_of(study).folds(trial._trial_id))
        if any(row.state is FoldState.COMPLETE for row in rows):
            return False
    return not any(line.startswith("search_space.") for line in differences)


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


def trial_folder(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> Path:
    """The folder of the run directories of one trial, and of its configuration."""
    return folder_of(study) / folder_name(trial.number)


def folder_name(number: int) -> str:
    """Of the trial of this number."""
    return f"trial_{number:04d}"


def inherit_folds(study: optuna.Study, trial: optuna.Trial) -> None:
    """Move the run directories of the trials that `trial` goes on with into its folder.

    So a rank that is still there, on a machine that was given up, cannot write into them any more.
    """
    folder, number = trial_folder(study, trial), trial.user_attrs.get(SUCCEEDS)
    while number is not None:
        for run_dir in (folder_of(study) / folder_name(number)).glob("fold_*"):
            if not (folder / run_dir.name).exists():  # of a later trial between the two
                with contextlib.suppress(OSError):  # then it is trained anew
                    run_dir.rename(folder / run_dir.name)
        number = _trial(study, number).user_attrs.get(SUCCEEDS)


def folds_before(study: optuna.Study, trial: optuna.Trial) -> dict[int, FoldRow]:
    """What has come of the folds of the trials that `trial` goes on with, by fold: of each the last that is known."""
    found: dict[int, FoldRow] = {}
    number = trial.user_attrs.get(SUCCEEDS)
    while number is not None:
        before = _trial(study, number)
        found = {row.fold: row for row in ledger_of(study).folds(before._trial_id)} | found
        number = before.user_attrs.get(SUCCEEDS)
    return found


def fold_dir(study: optuna.Study, number: int, fold: int) -> RunDir:
    """Of a fold of a trial, wherever the trials that went on with it have moved it; it may be gone."""
    path = folder_of(study) / folder_name(number) / f"fold_{fold}"
    if not path.is_dir():
        successors = {before: after for after, before in tally_of(study).attributes(SUCCEEDS)}
        if number in successors:
            return fold_dir(study, successors[number], fold)
    return RunDir(path)


def take_place(
    study: optuna.Study, definition: StudyDefinition, total: int, *, asks: bool = True
) -> tuple[optuna.Trial, dict[str, Any]] | None:
    """The next trial and its hyperparameters, or None when `total` places are taken: by sweeps beside this one, too.

    One that takes up a stopped trial takes the place of that one; without `asks` there are none but these.
    """
    with _one_at_a_time(study):  # they see it before they sample
        if not (asks and places_taken(study) < total) and not tally_of(study).num_to_revive():
            return None
        try:
            trial, params = ask(study, definition)
        except UpdateFinishedTrialError:  # the database was away for so long that others have ended it
            return None
    if REVIVES in trial.user_attrs or places_taken(study, before=trial.number) < total:
        return trial, params
    withdraw(study, trial.number)  # a sweep that does not see the lock took the last place
    return None


@contextlib.contextmanager
def _one_at_a_time(study: optuna.Study) -> Iterator[None]:
    """Held by a process that asks for a trial, so that the next one knows of it; not waited for without end."""
    lock = FileLock(folder_of(study) / ".ask.lock", poll_interval=LOCK_POLL_S)
    with contextlib.suppress(Timeout):  # of a process that was stopped, or is cut off from the database
        lock.acquire(timeout=LOCK_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def ask(study: optuna.Study, definition: StudyDefinition) -> tuple[optuna.Trial, dict[str, Any]]:
    """The next trial and its hyperparameters, sampled once, here, at full precision."""
    done = places_taken(study)  # an interrupted trial and the one queued in its place are one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        study.sampler = sampler_for(definition, done)
        trial = study.ask()
        trial.set_user_attr(OWNER, asdict(ledger_of(study).holder))
        params = sampled_values(trial, definition)
    trial.set_user_attr(SAMPLED, params)
    return trial, params


def places_taken(study: optuna.Study, *, before: int | None = None) -> int:
    """Trials that are evaluated or were, of those numbered below `before`; they and no more fill the budget."""
    return tally_of(study).places_taken(before)


def num_finished(study: optuna.Study) -> int:
    """How many trials count towards the budget: told, and not cut short by an interruption."""
    return tally_of(study).num_finished()


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials themselves that `num_finished` counts; reads all of them."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if INTERRUPTED not in trial.user_attrs]


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The completed trial with the best value, of those that violate no constraint. Raises NoBestTrialError."""
    try:
        return study.best_trial
    except ValueError as error:
        raise no_completed_trial(study) from error


def no_completed_trial(study: optuna.Study) -> NoBestTrialError:
    """There is none to choose from."""
    name, found, finished = study.study_name, kinds(failures_of(study)), num_finished(study)
    text = f"study '{name}' has no completed trial yet{that_keeps(study)}"
    paused = {each.root for each in tally_of(study).reported() if each.is_paused}
    if not found and paused:
        go_on = f"hpo sweep --study {name} --trials {finished} takes the best of them to its end"
        return NoBestTrialError(f"{text}, and {len(paused)} that are paused; {go_on}")
    if not found:
        return NoBestTrialError(f"{text}; see hpo status")
    asked = (study.user_attrs.get(DEFINITION) or {}).get("study", {}).get("budget", {}).get("trials", 0)
    go_on = f"hpo sweep --study {name} --trials {max(asked, 2 * finished)}"
    return NoBestTrialError(
        f"{text}: {sum(found.values())} of {counted(finished, 'trial')} failed ({by_kind(found)}), see hpo status;"
        f" failed ones count, so when that is mended: {go_on}"
    )


def failures_of(study: optuna.Study) -> dict[int, dict[str, Any]]:
    """Why trials failed, by number; those that were tried again left out."""
    tally = tally_of(study)
    interrupted = tally.interrupted()
    return {number: failure for number, failure in tally.attributes(FAILURE) if number not in interrupted}


def kinds(failures: dict[int, dict[str, Any]]) -> dict[str, int]:
    """How many of each kind."""
    return dict(Counter(failure["kind"] for failure in failures.values()))


def by_kind(found: dict[str, int]) -> str:
    """``5 user_code, 1 oom``"""
    return ", ".join(f"{count} {kind}" for kind, count in found.items())


def that_keeps(study: optuna.Study) -> str:
    """What else a trial must be to be chosen; "" where the study has no constraints."""
    return " that keeps its constraints" if study.user_attrs.get(IDENTITY, {}).get("constraints") else ""


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial violates no constraint, as far as is known."""
    return all(violation <= 0.0 for violation in trial.constraints.values())


def require_one_objective(study: optuna.Study, what: str) -> None:
    """Raises HpoError, saying that `what` is not for several."""
    if len(study.directions) > 1:
        raise HpoError(
            f"study '{study.study_name}' has {len(study.directions)} objectives and no one best trial: {what};"
            f" hpo best --study {study.study_name} shows its front"
        )


def best_value(study: optuna.Study) -> float | None:
    """Value of the best completed trial, if there is one."""
    return tally_of(study).best_value()


def interrupt(study: optuna.Study, number: int, **attributes: Any) -> bool:
    """End a trial that was cut short, and queue another that goes on with it, at once. False for one already told."""
    trial = _trial(study, number)
    return ledger_of(study).hand_over(trial._trial_id, successor_of(trial, **attributes))


def revive(study: optuna.Study, number: int, **attributes: Any) -> bool:
    """Queue another trial that goes on with a stopped one, unless another process has. Returns whether it did."""
    trial = _trial(study, number)
    successor = successor_of(trial, **{REVIVES: number, RETRIES: 0, LOSSES: (0, 0), **attributes})
    return successor is not None and ledger_of(study).succeed(trial._trial_id, successor)


def successor_of(trial: FrozenTrial, **attributes: Any) -> FrozenTrial | None:
    """A trial that goes on with `trial`; None for one that was cut short while it was sampled and was not queued."""
    params = trial.user_attrs.get(SAMPLED, trial.system_attrs.get("fixed_params"))
    if params is None:
        return None
    inherited = {key: trial.user_attrs[key] for key in INHERITED if key in trial.user_attrs}
    lineage = {CONTINUES: trial.user_attrs.get(CONTINUES, trial.number), **inherited, **attributes}
    return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params}, user_attrs=lineage)


def withdraw(study: optuna.Study, number: int) -> None:
    """End a trial that is not to be evaluated after all; it does not count and is not run again."""
    ledger_of(study).hand_over(_trial(study, number)._trial_id, None)


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return study._storage.get_trial(trial_id)


def running_here(study: optuna.Study) -> list[int]:
    """Numbers of the RUNNING trials of this very process."""
    ledger = ledger_of(study)
    return [each.number for each in ledger.held(study._study_id) if each.holder == ledger.holder]


def recover(
    study: optuna.Study,
    ours: Collection[int] | None = None,
    *,
    max_losses: float = math.inf,
    lost_of: Callable[[Sequence[Held]], Sequence[Held]] | None = None,
) -> dict[int, str]:
    """Queue the trials again that nobody evaluates any more (kill -9, a lost machine); returns what became of each, by
    number.

    `ours` are those that this process does, None for all that it holds: it was not told of one where the database broke
    off just as it was given. `lost_of` judges those of others. A trial that was lost more than `max_losses` times
    without a new evaluation in between fails: it may be what takes processes down. What is left of their processes on
    this machine is killed first. Any number of processes may do this at once.
    """
    ledger, recovered = ledger_of(study), {}
    all_held = ledger.held(study._study_id)
    lost = [each for each in all_held if each.is_lost] if lost_of is None else lost_of(all_held)
    for held in all_held:
        is_here = held.holder == ledger.holder
        is_unknown = ours is not None and held.number not in ours
        if is_unknown if is_here else held in lost:
            trial = _trial(study, held.number)
            kill_processes(job_id_prefix(trial_folder(study, trial)))
            losses = _losses(trial)
            if losses[0] > max_losses:
                failure = Failure(kind=FailureKind.INFRASTRUCTURE, message=_LOST.format(losses[0]))
                is_ours = ledger.hand_over(held.trial_id, None, seen=held, attributes={FAILURE: asdict(failure)})
                reason = f"{failure.kind}: {failure.message}"
            else:
                is_ours = ledger.hand_over(held.trial_id, successor_of(trial, **{LOSSES: losses}), seen=held)
                reason = "its process ended; queued again"
            if is_ours:
                recovered[held.number] = reason
    return recovered


_LOST = "its process was lost {} times without a new evaluation in between"


def _losses(trial: FrozenTrial) -> tuple[int, int]:
    """How often in a row the process of `trial` was lost, this time included, and the evaluations reported by now."""
    count, before = trial.user_attrs.get(LOSSES, (0, 0))
    reported = len(trial.intermediate_values)
    return (1 if reported > before else count + 1), max(reported, before)


def known_split(study: optuna.Study, definition: StudyDefinition) -> str | None:
    """The samples and folds on which the study's trials were scored; None when each may have data of its own."""
    if any(key.startswith("data.") for key in definition.config.search_space):
        return None
    known: str | None = tally_of(study).first(SPLIT_ID)
    return known
