"""What of run directories belongs to a study that moves, read while its trials may go on.

A trial that goes on with another takes its folders along, a job that runs appends and replaces its checkpoint, and one
that ends removes it. So the files of a fold are all opened first; they belong together when its folder then still is
where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import optuna

from hpo.study import fold_dir, folder_of
from training.run_dir import RunDir

TRIES = 5
"""What happens to a folder while its files are opened is over by the next try, or the one after it."""


@dataclass(kw_only=True, slots=True)
class OpenFold:
    """The files of a fold, by their paths in its folder."""

    run_dir: RunDir
    records: dict[str, BinaryIO] = field(default_factory=dict)
    checkpoint: dict[str, BinaryIO] = field(default_factory=dict)

    @property
    def trial(self) -> int:
        """The trial in whose folder it was."""
        return int(self.run_dir.path.parent.name.removeprefix("trial_"))


def folds_on_disk(study: optuna.Study) -> dict[tuple[int, int], RunDir]:
    """By trial and fold."""
    paths = folder_of(study).glob("trial_*/fold_*")
    found = ((re.fullmatch(r"trial_(\d+)/fold_(\d+)", f"{path.parent.name}/{path.name}"), path) for path in paths)
    return {(int(match[1]), int(match[2])): RunDir(path) for match, path in found if match}


@contextmanager
def open_fold(
    study: optuna.Study, trial: int, fold: int, run_dir: RunDir, *, has_checkpoint: bool
) -> Iterator[OpenFold | None]:
    """The files of a fold that was in `run_dir`, with its newest checkpoint if it is to have one; None where it is
    gone, or never rests."""
    for _ in range(TRIES):
        with ExitStack() as opened:
            found = OpenFold(run_dir=run_dir)
            is_whole = not has_checkpoint or _open_checkpoint(found, opened)
            _open_records(found, opened)
            if is_whole and found.run_dir.path.is_dir() and found.records:
                yield found
                return
        run_dir = fold_dir(study, trial, fold)
    yield None


def _open_checkpoint(found: OpenFold, opened: ExitStack) -> bool:
    """False when it was removed meanwhile."""
    if not (saved := found.run_dir.saved_checkpoints()):
        return True
    newest = saved[0]
    paths = sorted(newest.iterdir()) if newest.is_dir() else [newest]
    found.checkpoint |= _opened(found.run_dir.path, paths, opened)
    return len(found.checkpoint) == len(paths) and newest.exists()


def _open_records(found: OpenFold, opened: ExitStack) -> None:
    """After the checkpoint: records of the epochs that it does not hold are no harm, the other way round they lack."""
    run_dir = found.run_dir
    is_scored = run_dir.result.exists()
    paths = [run_dir.config, run_dir.metrics, run_dir.findings, run_dir.error]
    paths += [*sorted(run_dir.predictions.glob("*")), run_dir.result] if is_scored else []
    found.records |= _opened(run_dir.path, paths, opened)


def _opened(folder: Path, paths: list[Path], opened: ExitStack) -> dict[str, BinaryIO]:
    """Those of these files that are there."""
    files: dict[str, BinaryIO] = {}
    for path in paths:
        try:
            files[path.relative_to(folder).as_posix()] = opened.enter_context(path.open("rb"))
        except (FileNotFoundError, IsADirectoryError):
            continue
    return files
