"""How the trainer speaks to the outside: rank 0 writes to the run directory, all ranks take part in checkpoints."""

from __future__ import annotations

import time
from typing import Protocol

from training.checkpoint import Checkpoints, Progress, ShardedCheckpoints, TrainingState
from training.checksums import Position
from training.distributed import RunContext
from training.run_dir import Event, Record, RunDir

PAUSE_FACTOR = 50
WITHIN_EPOCH_S = 60.0
"""See RunDirReporter.save."""


class Reporter(Protocol):
    """What the trainer needs of the outside world. All ranks call all of it."""

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Tell what happened after optimizer step `step` and `epoch` finished epochs."""

    def stop_requested(self) -> bool:
        """Whether someone asked this job to leave early. Only rank 0's answer counts."""

    def save(self, state: TrainingState, progress: Progress, *, is_needed: bool = False) -> None:
        """Keep the state, if it is time to or `is_needed`; between two steps that every rank has done or not."""

    def load(self, state: TrainingState) -> Progress | None:
        """Put the newest kept state into `state`; None when there is none."""


class SilentReporter:
    """Says nothing and keeps nothing: for a training of your own that needs no run directory, and for tests."""

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Say nothing."""

    def stop_requested(self) -> bool:
        """Never ask."""
        return False

    def save(self, state: TrainingState, progress: Progress, *, is_needed: bool = False) -> None:
        """Keep nothing."""

    def load(self, state: TrainingState) -> Progress | None:
        """Nothing was kept."""
        return None


class RunDirReporter:
    """Rank 0 appends to ``metrics.jsonl`` and looks for ``stop``; the other ranks are silent."""

    def __init__(self, run_dir: RunDir, context: RunContext, *, saves: bool = True) -> None:
        self._run_dir, self._context, self._is_main, self._saves = run_dir, context, context.is_main, saves
        self._next_save = time.monotonic()
        kind = ShardedCheckpoints if context.sharded else Checkpoints
        self._checkpoints = kind(run_dir, is_main=context.is_main)

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one Record; a START also drops the records that a resumed job is about to repeat."""
        if not self._is_main:
            return
        if event is Event.START:
            self._run_dir.forget_after(Position(epoch, step))
        self._run_dir.append(Record(event=event, step=step, epoch=epoch, time=time.time(), values=values))

    def stop_requested(self) -> bool:
        """True on rank 0 once ``stop`` exists."""
        return self._is_main and self._run_dir.stop.exists()

    def save(self, state: TrainingState, progress: Progress, *, is_needed: bool = False) -> None:
        """Write a checkpoint, unless none are wanted or the last one was just written and nobody waits for another.

        One that took t seconds is followed by a pause of PAUSE_FACTOR x t, so that they cost two percent of the time,
        and within an epoch of another WITHIN_EPOCH_S: of short epochs, only the ends are kept.
        """
        is_asked_for = self._is_main and self._run_dir.keeps_checkpoint()
        pause_s = WITHIN_EPOCH_S if progress.epoch_step else 0.0
        is_due = is_needed or is_asked_for or time.monotonic() >= self._next_save + pause_s
        if self._saves and self._agreed(is_due):
            began = time.monotonic()
            self._checkpoints.save(state, progress)
            self._next_save = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - began)

    def _agreed(self, is_due: bool) -> bool:
        """Rank 0's answer, where all ranks write."""
        return self._context.broadcast(is_due) if self._context.sharded else is_due

    def load(self, state: TrainingState) -> Progress | None:
        """Read the newest checkpoint."""
        return self._checkpoints.load(state)
