"""Checkpoints: the whole state at the end of an epoch, written so that a kill never leaves a half one.

Randomness is a function of the epoch (see seeding.py), so weights, optimizer, schedule and progress are all there is.
Tensors and plain values only: read with ``weights_only=True``, so a checkpoint cannot carry code.
"""

from __future__ import annotations

from typing import Any

import torch

from training.errors import DataError
from training.run_dir import RunDir, replacing

State = dict[str, Any]


def save_checkpoint(run_dir: RunDir, epoch: int, state: State) -> None:
    """Write the checkpoint after `epoch` finished epochs and remove the older ones. Rank 0."""
    run_dir.checkpoints.mkdir(exist_ok=True)
    newest = run_dir.checkpoint(epoch)
    with replacing(newest) as file:
        torch.save(state, file)
    for other in run_dir.checkpoints.glob("epoch_*.pt"):
        if other != newest:
            other.unlink()


def load_checkpoint(run_dir: RunDir) -> State | None:
    """The newest checkpoint, on the CPU, or None when there is none. Every rank. Raises DataError when damaged."""
    epoch = run_dir.last_epoch()
    if epoch == 0:
        return None
    path = run_dir.checkpoint(epoch)
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to train from the start") from error
    return state
