"""A study as one file: what its database knows of it, and the run directories that matter.

Of each fold its configuration, records, result and predictions; of what may go on, and of the best trial, the newest
checkpoint. Logs, models and caches stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

import optuna

from hpo.errors import HpoError, NoBestTrialError
from hpo.front import front_of
from hpo.ledger import SUCCEEDS, ledger_of
from hpo.moving.archive import ArchiveWriter
from hpo.moving.run_dirs import folds_on_disk, open_fold
from hpo.moving.snapshot import STUDY_SYSTEM_ATTRIBUTES, SYSTEM_ATTRIBUTES, Snapshot, settle, take
from hpo.study import best_trial, folder_name, folder_of
from hpo.tally import PAUSED
from training.atomic_files import making, remove_leftovers, sync_folder
from training.run_dir import RunDir

ARTIFACT = re.compile(r"artifacts:([0-9a-f-]{36})")
"""Key of an attribute that describes a file which optuna-dashboard shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What a file holds."""

    path: Path
    trials: int
    folds: int
    checkpoints: int
    size_bytes: int


def export_study(study: optuna.Study, path: Path, *, with_checkpoints: bool = True) -> Exported:
    """Write `study` as it is now, in one moment, to a new file; others may go on with it meanwhile.

    Trials that run are written as a kill would leave them. Raises HpoError when the file exists or has no folder.
    """
    if not path.absolute().parent.is_dir():
        raise HpoError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    remove_leftovers(path)
    if path.exists():
        raise _exists(path)
    ledger = ledger_of(study)
    folds = folds_on_disk(study)  # and after: what runs meanwhile moves from one to the other
    snapshot = take(ledger, study.study_name)
    folds |= folds_on_disk(study)
    num_trials = len(snapshot.trials)
    settle(snapshot)
    with _new_file(path) as file, ZipFile(file, "w") as opened:
        writer = ArchiveWriter(opened)
        kept = _going_on(snapshot) | _best(study) if with_checkpoints else set[int]()
        found = _add_folds(study, writer, folds, num_trials, kept)
        _add_files(writer, study, snapshot, range(num_trials))
        about = {"hpo": version("hpo"), "optuna": version("optuna"), "schema": ledger.get_current_version()}
        writer.finish(snapshot, {**about, "exported_at": datetime.now(UTC).isoformat(timespec="seconds")})
    num_folds, num_checkpoints = len(found), sum(found.values())
    size = path.stat().st_size
    return Exported(path=path, trials=num_trials, folds=num_folds, checkpoints=num_checkpoints, size_bytes=size)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with making(path) as file:
            yield file
    except FileExistsError as error:
        raise _exists(path) from error
    sync_folder(path.parent)


def _exists(path: Path) -> HpoError:
    return HpoError(f"{path} exists: give another name, or remove it first")


def _going_on(snapshot: Snapshot) -> set[int]:
    """Numbers of the trials that others go on with, or may."""
    attributes = snapshot.attributes()
    before = {number: found[SUCCEEDS] for number, found in attributes.items() if SUCCEEDS in found}
    numbers = {number for number, found in attributes.items() if PAUSED in found} - {*before.values()}
    for row in snapshot.trials:
        number = row["number"] if row["state"] == "WAITING" else None
        while number in before:
            numbers.add(number := before[number])
    return numbers


def _best(study: optuna.Study) -> set[int]:
    with suppress(NoBestTrialError):
        if len(study.directions) > 1:
            return {trial.number for trial in front_of(study)}
        return {best_trial(study).number}
    return set()


def _add_folds(
    study: optuna.Study, writer: ArchiveWriter, folds: dict[tuple[int, int], RunDir], num_trials: int, kept: set[int]
) -> dict[tuple[int, int], bool]:
    """Those of the first `num_trials` trials; returns which were added, and whether with a checkpoint."""
    added: dict[tuple[int, int], bool] = {}
    for trial, fold in sorted(each for each in folds if each[0] < num_trials):
        with open_fold(study, trial, fold, folds[trial, fold], has_checkpoint=trial in kept) as found:
            if found is None:
                continue
            owner = found.trial if found.trial < num_trials else trial  # a later trial is not of this moment
            if (owner, fold) in added:
                continue
            for name, file in {**found.records, **found.checkpoint}.items():
                is_packed = name not in found.checkpoint
                writer.add(f"trials/{folder_name(owner)}/fold_{fold}/{name}", file, is_packed=is_packed)
            added[owner, fold] = bool(found.checkpoint)
    return added


def _add_files(writer: ArchiveWriter, study: optuna.Study, snapshot: Snapshot, numbers: Iterable[int]) -> None:
    """The configurations of the trials, and what is shown with the study."""
    folder = folder_of(study)
    files = {f"trials/{name}/config.yaml": folder / name / "config.yaml" for name in map(folder_name, numbers)}
    for table in (STUDY_SYSTEM_ATTRIBUTES, SYSTEM_ATTRIBUTES):
        described = filter(None, (ARTIFACT.fullmatch(row["key"]) for row in snapshot.tables[table.name]))
        files |= {f"artifacts/{match[1]}": folder.parent / "artifacts" / match[1] for match in described}
    for name, path in files.items():
        with suppress(FileNotFoundError), path.open("rb") as file:
            writer.add(name, file)
