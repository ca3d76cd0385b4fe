"""How the trainer speaks to the outside: rank 0 writes to the run directory, the other ranks only read from it."""

from __future__ import annotations

import time
from typing import Protocol

from training.checkpoint import State, load_checkpoint, save_checkpoint
from training.run_dir import Event, Record, RunDir


class Reporter(Protocol):
    """What the trainer needs of the outside world."""

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Tell what happened after optimizer step `step` and `epoch` finished epochs."""

    def stop_requested(self) -> bool:
        """Whether someone asked this job to leave early. Only rank 0's answer counts."""

    def save(self, epoch: int, state: State) -> None:
        """Keep the state after `epoch` finished epochs."""

    def load(self) -> State | None:
        """The newest kept state."""


class SilentReporter:
    """Says nothing and keeps nothing: for a training of your own that needs no run directory, and for tests."""

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Say nothing."""

    def stop_requested(self) -> bool:
        """Never ask."""
        return False

    def save(self, epoch: int, state: State) -> None:
        """Keep nothing."""

    def load(self) -> State | None:
        """Nothing was kept."""
        return None


class RankReporter(SilentReporter):
    """Every rank but the first: silent, but resumes from the same checkpoint as rank 0."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def load(self) -> State | None:
        """Read the newest checkpoint."""
        return load_checkpoint(self._run_dir)


class MainReporter(RankReporter):
    """Rank 0: appends to ``metrics.jsonl``, looks for ``stop``, writes checkpoints."""

    def report(self, event: Event, *, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one Record; a START also drops the records that a resumed job is about to repeat."""
        if event is Event.START:
            self._run_dir.forget_after(epoch)
        self._run_dir.append(Record(event=event, step=step, epoch=epoch, time=time.time(), values=values))

    def stop_requested(self) -> bool:
        """True once ``stop`` exists."""
        return self._run_dir.stop.exists()

    def save(self, epoch: int, state: State) -> None:
        """Write a checkpoint."""
        save_checkpoint(self._run_dir, epoch, state)
