"""Room on the disk: the checkpoints of paused trials, and which of them go.

A fold that is paused has one; while it trained it had two.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from training.run_dir import RunDir


def forget_checkpoints(trial: Path) -> None:
    """Remove those of the trial in this folder; one that goes on all the same trains its folds from the start."""
    for fold in trial.glob("fold_*"):
        shutil.rmtree(RunDir(fold).checkpoints, ignore_errors=True)


def make_room(trials: Sequence[Path], limit_bytes: int) -> None:
    """Remove the checkpoints of the first of these folders until those of all take `limit_bytes` at most."""
    sizes = {trial: checkpoint_bytes(trial) for trial in trials}
    total = sum(sizes.values())
    for trial, size in sizes.items():
        if total <= limit_bytes:
            return
        if size:
            forget_checkpoints(trial)
            total -= size


def checkpoint_bytes(trial: Path) -> int:
    """What the checkpoints of the trial in this folder take."""
    files = (file for fold in trial.glob("fold_*") for file in RunDir(fold).checkpoints.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)
