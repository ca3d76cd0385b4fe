"""Jobs that hang, and folds and trials that take too long: what of a sweep's jobs is to be ended now, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from hpo.console import duration
from hpo.events import JobLabel
from hpo.study_config import RecoveryConfig
from training.errors import Failure, FailureKind


@dataclass(slots=True)
class _Watched:
    began: float
    """When it had its devices."""
    heard: float
    """When its ranks last told something."""


class Watchdog:
    """Knows when each job was last heard. Used by one thread."""

    def __init__(self, limits: RecoveryConfig, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._jobs: dict[JobLabel, _Watched] = {}
        self._trials: dict[int, float] = {}
        """When the first job of each had its devices."""

    def start(self, label: JobLabel) -> None:
        """A job has been started."""
        now = self._clock()
        self._jobs[label] = _Watched(began=now, heard=now)

    def hear(self, label: JobLabel) -> None:
        """Rank 0 of a job tells something, which it can only where the others keep step."""
        self._jobs[label].heard = self._clock()

    def finish(self, label: JobLabel) -> None:
        """A job has ended."""
        del self._jobs[label]

    def forget(self, trial: int) -> None:
        """A trial is over."""
        self._trials.pop(trial, None)

    def overdue(self, waiting: Collection[JobLabel] = ()) -> dict[JobLabel, Failure]:
        """Each job that is to be ended, and what is to be said of it; the time of one that waits for devices has not
        begun.
        """
        for label in self._jobs.keys() & {*waiting}:
            self.start(label)
        running = self._jobs.keys() - {*waiting}
        found = {label: self._failure(label, self._jobs[label]) for label in running}
        return {label: failure for label, failure in found.items() if failure}

    def _failure(self, label: JobLabel, watched: _Watched) -> Failure | None:
        now, limits = self._clock(), self._limits
        silent = now - watched.heard
        if silent > limits.no_progress_timeout:
            message = f"fold {label.fold} made no progress for {duration(silent)} (recovery.no_progress_timeout)"
            return Failure(kind=FailureKind.HANG, message=message)
        began = self._trials.setdefault(label.trial, watched.began) if label.trial is not None else watched.began
        for key, limit, since in (
            ("fold_timeout", limits.fold_timeout, watched.began),
            ("trial_timeout", limits.trial_timeout, began),
        ):
            if limit is not None and now - since > limit:
                message = f"fold {label.fold} was ended after {duration(now - since)} (recovery.{key})"
                return Failure(kind=FailureKind.TIMEOUT, message=message)
        return None
