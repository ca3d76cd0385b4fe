"""Checkpoints: the whole state between two optimizer steps, written so that a kill never leaves a half one.

The one before is kept until the next is begun: after the first there is a whole one at any moment, and two at most. The
name tells whether it is whole (checksums.py); RunDir.prepare removes what is not before a training goes on.

Randomness is a function of the step (see seeding.py), so weights, optimizer, schedule and progress are all there is.
One process and DDP write a file, on rank 0; FSDP writes a folder, each rank its shard. Each of them reads both kinds,
on any number of ranks. A file is read with ``weights_only=True``, so it cannot carry code; torch.distributed.checkpoint
promises no such thing of its folders: resume those you trust.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.atomic_files import replacing, sync_folder
from training.checksums import Position, checksum_of_all, checksums
from training.errors import DataError, FailureKind, classify
from training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """The parts of a training that change."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training is."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Optimizer steps."""
    epoch_step: int = 0
    """Those of the epoch that is under way; its samples up to here have been seen."""
    steps_per_epoch: int = 0
    """That it would have had in all, as its samples and their batches were."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""

    @property
    def position(self) -> Position:
        """What a checkpoint taken now is called by."""
        return Position(self.epoch, self.step if self.epoch_step else 0)


class Checkpoints:
    """The checkpoints of one run, in one file each: one process, or DDP, whose rank 0 writes. All ranks call."""

    def __init__(self, run_dir: RunDir, *, is_main: bool) -> None:
        self.run_dir, self.is_main = run_dir, is_main

    def save(self, state: TrainingState, progress: Progress) -> None:
        """Write a checkpoint beside the one before it. The other ranks need not wait: they meet at the next step."""
        if self.is_main:
            self._begin()
            tensors = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
            with self.run_dir.new_checkpoint(progress.position) as file:
                torch.save(tensors | _rest(state, progress), file)

    def load(self, state: TrainingState) -> Progress | None:
        """Put the newest checkpoint into `state`, and return how far it was; None when there is none.

        Raises DataError when it is not one of this model.
        """
        path = next(iter(self.run_dir.saved_checkpoints()), None)
        if path is None:
            return None
        try:
            rest = _load_folder(path, state) if path.is_dir() else self._load_file(path, state)
            state.scheduler.load_state_dict(rest["scheduler"])
            if rest["scaler"]:  # empty when it was taken in another precision
                state.scaler.load_state_dict(rest["scaler"])
            return Progress(**rest["progress"])
        except BaseException as error:  # torch's CheckpointException is no Exception
            first = _first(error)
            not_its_fault = classify(first) in (FailureKind.OOM, FailureKind.INFRASTRUCTURE, FailureKind.DISK_FULL)
            if not_its_fault or isinstance(error, KeyboardInterrupt | SystemExit):
                raise first from None
            reason = next(iter(str(first).splitlines()), type(first).__name__)
            start = f"remove {path.parent} to train from the start"
            raise DataError(f"{path} cannot be read ({reason}); {start}") from error

    def _load_file(self, file: Path, state: TrainingState) -> dict[str, Any]:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        return saved

    def _begin(self) -> None:
        """Make room for another. Raises FileNotFoundError where another attempt has taken the run directory."""
        self.run_dir.checkpoints.mkdir(exist_ok=True)  # not its parents, as torch.distributed.checkpoint would
        if self.is_main:
            self.run_dir.keep_newest_checkpoint()


class ShardedCheckpoints(Checkpoints):
    """In one folder each, into which every rank writes its shard. All ranks call, and wait for each other."""

    def save(self, state: TrainingState, progress: Progress) -> None:
        """Write a checkpoint beside the one before it."""
        from torch.distributed.checkpoint.state_dict_saver import save

        self._begin()
        temporary = self.run_dir.checkpoints / f".{progress.position}.tmp"
        save(_tensors(state), checkpoint_id=temporary)
        sums = _sums_of_shards(temporary)
        if self.is_main:  # every rank has written its shard by now
            with replacing(temporary / REST) as file:
                torch.save(_rest(state, progress), file)
            sums |= checksums(file for file in temporary.iterdir() if file.name not in sums)
            os.replace(temporary, self.run_dir.sharded_checkpoint(progress.position, checksum_of_all(sums)))
            sync_folder(self.run_dir.checkpoints)

    def _load_file(self, file: Path, state: TrainingState) -> dict[str, Any]:
        """A file knows the optimizer's parameters by number; the shards need them by name."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(state.model, saved["model"], options=whole)
        _set_optimizer(state, _by_name(saved["optimizer"], state), full_state_dict=True)
        return saved


def _sums_of_shards(folder: Path) -> dict[str, str]:
    """Each rank reads what it has just written. All ranks."""
    if not dist.is_initialized():
        return checksums(folder.glob("__0_*"))
    sums: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(sums, checksums(folder.glob(f"__{dist.get_rank()}_*")))
    return {name: checksum for each in sums for name, checksum in each.items()}


def _first(error: BaseException) -> BaseException:
    """Of what failed on several ranks, the first."""
    return next((failure for failure, _ in getattr(error, "failures", {}).values()), error)


REST = "rest.pt"
"""In the folder of a sharded checkpoint: what is not sharded."""


def _rest(state: TrainingState, progress: Progress) -> dict[str, Any]:
    parts = {"scheduler": state.scheduler.state_dict(), "scaler": state.scaler.state_dict()}
    return parts | {"progress": asdict(progress)}


def _tensors(state: TrainingState) -> dict[str, Any]:
    """Weights and optimizer state under the names of the parameters, which no number of ranks changes."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(state.model, state.optimizer)
    return {"model": model, "optimizer": optimizer}


def _load_folder(folder: Path, state: TrainingState) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import set_model_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = _tensors(state)
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    states = tensors["optimizer"]["state"]  # of all parameters; those that never had a gradient have none
    kept = {
        name: each for name, each in states.items() if any(f"optimizer.state.{name}.{key}" in saved for key in each)
    }
    tensors["optimizer"]["state"] = kept
    with warnings.catch_warnings():  # it warns that a single process is a single process
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(tensors, checkpoint_id=folder)
    set_model_state_dict(state.model, tensors["model"])
    _set_optimizer(state, tensors["optimizer"])
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    return rest


def _set_optimizer(state: TrainingState, saved: dict[str, Any], *, full_state_dict: bool = False) -> None:
    """Not strict: a parameter that never had a gradient has no state."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(strict=False, full_state_dict=full_state_dict)
    set_optimizer_state_dict(state.model, state.optimizer, saved, options=options)


def _by_name(saved: dict[str, Any], state: TrainingState) -> dict[str, Any]:
    """An optimizer's state with the names of its parameters instead of their numbers."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    ordered = [names[parameter] for group in state.optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [ordered[number] for number in group["params"]]} for group in saved["param_groups"]]
    return {"state": {ordered[number]: values for number, values in saved["state"].items()}, "param_groups": groups}
