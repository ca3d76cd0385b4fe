"""A study out of the file that it was exported to: all of it, or nothing.

The files are read, checked and laid out beside their place first. Then one transaction makes the study, and puts the
files into place before it ends. A kill leaves a folder that nothing knows; the next import of that study removes it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy.exc import IntegrityError

from hpo.errors import HpoError, StorageError
from hpo.ledger import LedgerStorage
from hpo.masking import masked
from hpo.moving.archive import STUDY, Archive
from hpo.moving.exporting import ARTIFACT
from hpo.moving.snapshot import (
    OF_A_TRIAL,
    STUDY_SYSTEM_ATTRIBUTES,
    STUDY_USER_ATTRIBUTES,
    SYSTEM_ATTRIBUTES,
    Row,
    Snapshot,
    put,
)
from hpo.study import DEFINITION, FOLDER, UID
from training.config import dump_sealed, parse_layer, require_whole
from training.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Of a study, as in hpo/study_config.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A study that is there now."""

    study: str
    folder: Path
    trials: int
    waiting: int
    """Trials that are queued, such as those that go on with one that ran."""


def name_of(archive: Archive, name: str | None) -> str:
    """Of the study to be: `name`, or as it was. Raises HpoError when it cannot be one."""
    wanted = str(archive.about.get("study")) if name is None else name
    if NAME.fullmatch(wanted) is None:
        raise HpoError(f"{wanted!r} cannot be the name of a study: --name takes letters, digits, dots and dashes")
    return wanted


def import_study(archive: Archive, storage: LedgerStorage, root: Path, *, name: str | None = None) -> Imported:
    """Make the study of `archive` in `storage`, its files in the output folder `root`, under another `name` if given.

    Raises HpoError when there is one of that name, or the file is damaged or of other tables.
    """
    study, snapshot = name_of(archive, name), archive.snapshot
    _require_schema(archive, storage)
    _require_new(storage, study)
    with _staging(root, study) as staging:
        artifacts = {
            member.rpartition("/")[2]: str(uuid.uuid4()) for member in archive.members if "artifacts/" in member
        }
        _lay_out(archive, staging, artifacts, str(root))
        folder = _free_folder(root, study)
        _relocate(snapshot, study, folder, root, artifacts)
        os.sync()  # the files are there for good before the study is
        try:
            with storage.engine.begin() as connection:
                put(connection, snapshot)
                _put_into_place(staging, folder, root)
        except IntegrityError as error:
            raise _exists(storage, study) from error
    waiting = sum(row["state"] == "WAITING" for row in snapshot.trials)
    return Imported(study=study, folder=folder, trials=len(snapshot.trials), waiting=waiting)


def _require_schema(archive: Archive, storage: LedgerStorage) -> None:
    if archive.about.get("schema") != (here := storage.get_current_version()):
        raise HpoError(
            f"the file was written by Optuna {archive.about.get('optuna')}, whose tables are"
            f" {archive.about.get('schema')}; here they are {here}: import it with that version of Optuna"
        )


def _require_new(storage: LedgerStorage, study: str) -> None:
    if any(each.study_name == study for each in storage.get_all_studies()):
        raise _exists(storage, study)


def _exists(storage: LedgerStorage, study: str) -> HpoError:
    return HpoError(f"study '{study}' exists in {masked(storage.url)}: --name NEW imports it under another name")


@contextmanager
def _staging(root: Path, study: str) -> Iterator[Path]:
    """An empty folder beside the place of the study, for one process that makes a study of this name there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{study}.lock").acquire()  # of hpo.study
    except OSError as error:
        raise StorageError(f"output.root {root} cannot be written: {error.strerror}") from error
    staging = root / f".importing-{study}"
    with lock:
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        staging.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _free_folder(root: Path, study: str) -> Path:
    names = (study if number == 1 else f"{study}-{number}" for number in range(1, 10_000))
    return next(path for path in (root.absolute() / name for name in names) if not path.exists())


def _lay_out(archive: Archive, staging: Path, artifacts: dict[str, str], root: str) -> None:
    """Write all files into `staging`. Raises HpoError when one is damaged."""
    (staging / "trials").mkdir()
    for member in archive.members:
        if member == STUDY:
            continue
        folder, _, last = member.rpartition("/")
        target = staging / folder / artifacts.get(last, last)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if last == "config.yaml":
            target.write_bytes(_with_root(archive.read(member), root))
            continue
        with target.open("xb") as file:
            for chunk in archive.chunks(member):
                file.write(chunk)


def _with_root(data: bytes, root: str) -> bytes:
    """A recorded configuration whose ``output.root`` is here; as it was where it is damaged."""
    try:
        require_whole(data, name="config.yaml")
        values = parse_layer(data.decode(), name="config.yaml").values
        if values["output"]["root"] == root:
            return data
        values["output"]["root"] = root
        return dump_sealed(values)
    except (ConfigError, ValueError, KeyError, TypeError):
        return data


def _put_into_place(staging: Path, folder: Path, root: Path) -> None:
    """Put all files where the study says they are, or none."""
    placed: list[Path] = []
    try:
        for artifact in (staging / "artifacts").glob("*"):
            (root / "artifacts").mkdir(exist_ok=True)
            os.replace(artifact, root / "artifacts" / artifact.name)
            placed.append(root / "artifacts" / artifact.name)
        folder.mkdir(mode=0o700)
        os.replace(staging / "trials", folder)
    except BaseException as error:
        for path in placed:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise HpoError(f"{folder} was made meanwhile, by something else; import once more") from error
        raise


def _relocate(snapshot: Snapshot, study: str, folder: Path, root: Path, artifacts: dict[str, str]) -> None:
    """Have it say its new name, its folder and the output folder, and the new ids of what is shown with it."""
    tables, old = snapshot.tables, f"{_attribute(snapshot, FOLDER)}{os.sep}"
    changes = {FOLDER: str(folder), DEFINITION: _redefined(_attribute(snapshot, DEFINITION), study, str(root))}
    if study != snapshot.study:  # another study than that one, in MLflow too
        changes[UID] = uuid.uuid4().hex
    snapshot.study = study
    for row in tables[STUDY_USER_ATTRIBUTES.name]:
        if row["key"] in changes:
            row["value_json"] = json.dumps(changes[row["key"]])
    for row in (*tables[STUDY_SYSTEM_ATTRIBUTES.name], *tables[SYSTEM_ATTRIBUTES.name]):
        if (match := ARTIFACT.fullmatch(row["key"])) and (new := artifacts.get(match[1])):
            row |= {"key": f"artifacts:{new}", "value_json": row["value_json"].replace(match[1], new)}
    for row in itertools.chain.from_iterable(tables[table.name] for table in OF_A_TRIAL):
        row |= _moved(row, old, f"{folder}{os.sep}")


def _redefined(definition: Any, study: str, root: str) -> Any:
    """What the study keeps for workers; None where it is of a version that kept nothing."""
    if definition is None:
        return None
    for job in (definition["job"], definition["settings"]):
        if isinstance(output := job.get("output"), dict):
            output |= {"root": root}
    definition["study"]["study"] = study
    return definition


def _moved(row: Row, old: str, new: str) -> Row:
    """The texts of a row that are paths in the `old` folder, in the `new` one."""
    texts = {key: value for key, value in row.items() if isinstance(value, str) and value.startswith(old)}
    return {key: new + value.removeprefix(old) for key, value in texts.items()}


def _attribute(snapshot: Snapshot, key: str) -> Any:
    """Of the study; None where it has none."""
    rows = snapshot.tables[STUDY_USER_ATTRIBUTES.name]
    return next((json.loads(row["value_json"]) for row in rows if row["key"] == key), None)
