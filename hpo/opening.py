"""From what was typed to the study it means: definition, storage, listeners. Heavy imports wait for their use."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from hpo.errors import HpoError, StorageError, StudyNotFoundError

if TYPE_CHECKING:
    from optuna import Study

    from hpo.background import Background
    from hpo.definition import StudyDefinition
    from hpo.events import Event, Listener
    from hpo.ledger import LedgerStorage
    from hpo.price import Price
    from hpo.tracking import NoTracker


OF_A_SEARCH = re.compile(r"/trial_\d{4,}/fold_\d+$")
"""The run directory of a fold; a lease in the database says who trains there."""


def again_options(study: str | None, env: str | None, settings: list[str] | None, storage: str | None) -> str:
    """The options that lead to the same study (None: to all) once more, as typed; what came from the environment stays
    there."""
    from hpo.masking import masked

    typed = [*(["--study", study] if study else []), *(["--env", env] if env else [])]
    # Keys that say where things are; the others are in the study by now.
    typed += [part for setting in settings or () if setting.startswith("output.") for part in ("--set", setting)]
    if storage and storage != os.environ.get("HPO_STORAGE"):
        if masked(storage) != storage:
            return f'{shlex.join(typed)} --storage "$HPO_STORAGE"'  # set it to the URL: this one has a password
        typed += ["--storage", storage]
    return shlex.join(typed)


def chosen_by(select: str, top_k: int | None, trial: int | None = None) -> str:
    """The options that choose the same trial once more, with a space before; empty for the best one."""
    named = "" if trial is None else f" --trial {trial}"
    return (f" --select {select}" if select != "best" else "") + (f" --top-k {top_k}" if top_k else "") + named


def define(
    study: str, env: str | None, settings: list[str], options: Mapping[str, str] = MappingProxyType({})
) -> StudyDefinition:
    """The checked definition of a study. Raises ConfigError and StudyNotFoundError."""
    from hpo.definition import load_definition

    return load_definition(study, environment=env, settings=settings, options=options)


def launched_by(launcher: str | None, settings: list[str] | None) -> list[str]:
    """The settings, and the launcher as one more."""
    return [*(settings or []), *([f"distributed.launcher={launcher}"] if launcher else [])]


def require_resumable(resume: Path | None) -> None:
    """Raises HpoError and ConfigError where a training cannot go on in the run directory `resume`."""
    from training.run_dir import RunDir

    if resume is None:
        return
    if not resume.is_dir():
        raise HpoError(f"--resume {resume}: there is no such folder")
    run_dir = RunDir(resume)
    if OF_A_SEARCH.search(str(run_dir.path)):
        raise HpoError(
            f"--resume {resume}: a fold of a search, which hpo sweep goes on with; hpo replay trains one again"
        )
    if run_dir.load_result() and not run_dir.has_checkpoint():
        raise HpoError(f"--resume {resume}: is complete; only with output.keep_checkpoint: true could it train longer")
    if not run_dir.has_checkpoint():
        raise HpoError(f"--resume {resume}: there is no checkpoint to go on from; train it again without --resume")
    run_dir.load_config()


def storage_url(definition: StudyDefinition, storage: str | None) -> str:
    """Of the study database: as typed, as the study says, or in its output folder."""
    from hpo.storage import default_url

    return storage or definition.config.storage or default_url(definition.root)


def open_any(
    study: str | None, env: str | None, settings: list[str] | None, storage: str | None
) -> tuple[LedgerStorage, str | None, Path]:
    """The storage, the study's name and the output folder: of a study, also where its file does not exist, or of the
    base configuration alone."""
    from hpo.definition import base_job, has_file
    from hpo.storage import default_url, open_storage

    if study is not None and has_file(study):
        definition = define(study, env, settings or [])
        url = storage_url(definition, storage)
        return open_storage(url, create=False), definition.config.study, definition.root
    root = Path(base_job(environment=env, settings=settings or ()).output.root)
    database = open_storage(storage or default_url(root), create=False)
    if study is not None:
        _require_there(study, database)
    return database, study, root


def _require_there(study: str, database: LedgerStorage) -> None:
    """Raises StudyNotFoundError where a study without a file is not in the storage either."""
    from hpo.definition import find_study
    from hpo.masking import masked
    from hpo.study import study_names

    names = study_names(database)
    if study in names:
        return
    try:
        find_study(study)
    except StudyNotFoundError as error:
        there = ", ".join(names) or "none"
        raise StudyNotFoundError(f"{error} (studies in {masked(database.url)}: {there})") from error


def open_recorded(study: str, env: str | None, settings: list[str] | None, storage: str | None) -> Study:
    """A study that exists, also where its file does not."""
    from hpo.study import load_study

    database, name, _ = open_any(study, env, settings, storage)
    return load_study(name or study, database)


def place_for(
    study: str, env: str | None, settings: list[str] | None, storage: str | None
) -> tuple[LedgerStorage, Path]:
    """The storage and the output folder that a study of this name has, or would have; they need not exist yet."""
    from hpo.definition import base_job, has_file
    from hpo.storage import default_url, open_storage

    if has_file(study):
        definition = define(study, env, settings or [])
        return open_storage(storage_url(definition, storage)), definition.root
    root = Path(base_job(environment=env, settings=settings or ()).output.root)
    return open_storage(storage or default_url(root)), root


def price(definition: StudyDefinition, storage: str | None) -> Price:
    """What the study may cost, by what its storage knows, where there is one yet."""
    from hpo.price import price_of
    from hpo.storage import open_storage

    try:
        return price_of(definition, open_storage(storage_url(definition, storage), create=False))
    except StorageError as error:
        print(f"note: nothing was measured yet: {error}", file=sys.stderr)
        return price_of(definition, None)


def open_existing(
    study: str, env: str | None, settings: list[str] | None, storage: str | None
) -> tuple[StudyDefinition, str, Study]:
    """A study that exists: its definition, the one that it keeps where it has no file, the URL of its storage, and
    itself."""
    from hpo.definition import has_file, joined_definition
    from hpo.storage import open_storage
    from hpo.study import definition_of, load_study

    if not has_file(study):
        database, _, _ = open_any(study, env, settings, storage)
        loaded = load_study(study, database)
        return joined_definition(definition_of(loaded), settings=settings or ()), database.url, loaded
    definition = define(study, env, settings or [])
    url = storage_url(definition, storage)
    return definition, url, load_study(definition.config.study, open_storage(url, create=False))


def tracker_of(definition: StudyDefinition, console: Listener) -> Background | NoTracker:
    """What writes to the MLflow of a study."""
    from hpo.tracking import connect

    return connect(definition.config.mlflow, definition.root, notice_to(console))


def notice_to(console: Listener) -> Callable[[str], None]:
    """A function that has `console` show a text."""
    from hpo.events import Notice

    return lambda text: console(Notice(message=text))


def all_of(*listeners: Listener) -> Listener:
    """One listener that passes each event to all `listeners`."""

    def listen(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return listen
