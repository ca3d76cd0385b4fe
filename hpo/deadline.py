"""Folds that must have ended at a certain time: which still fit before it, and which of those that run are parked.

How long a fold takes is what the folds of its trial took, at the median, else those of the study, epoch by epoch. A
fold that runs is asked to stop when there is just the time to save what it has, unless its present epoch ends in time.
Times are readings of `clock`, in seconds; without a deadline it is never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median

from hpo.events import JobLabel
from training.run_dir import Event, Record

ENDING_S = 5.0
"""What a job that was asked to stop may take to leave, and the sweep to say so."""
LOOKS = 2.0
"""Times the longest pause between two records, after each of which rank 0 looks whether it is asked to stop."""

LATE = 1.5
"""Times what was expected of an epoch, after which nothing is expected of it any more."""

Clock = Callable[[], float]


class Deadline:
    """When the folds of a sweep must have ended. Used by one thread."""

    def __init__(self, at: float, known_epoch_s: Iterable[float], clock: Clock) -> None:
        self.at, self._clock = at, clock
        self._epoch_s = list(known_epoch_s)
        """Seconds an epoch took in each finished fold of the study."""
        self._of_trial: defaultdict[int | None, list[float]] = defaultdict(list)
        self._running: dict[JobLabel, _Pace] = {}
        self._has_parked = False

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self._clock() >= self.at

    @property
    def wait_s(self) -> float:
        """How long nothing is to be done about it, as long as no fold tells anything."""
        due = (pace.due(self.at) for pace in self._running.values() if not pace.is_ending)
        return max(0.0, min((self.at, *due)) - self._clock())

    def expected_s(self, trial: int | None, epochs: float) -> float | None:
        """Seconds that a fold of so many epochs will take; None before the first job has ended."""
        known = self._of_trial.get(trial) or self._epoch_s
        return median(known) * epochs if known else None

    def fits(self, trial: int | None, epochs: float) -> bool:
        """Whether a fold that starts now will end in time, as far as is known; a new trial has no number.

        Once a fold was parked no new trial has time: it would be the parked one, which is next in the queue.
        """
        expected = self.expected_s(trial, epochs)
        if self._has_parked and (trial is None or expected is None):
            return False
        return self._clock() + (expected or 0.0) <= self.at - ENDING_S

    def start(self, label: JobLabel, epochs: range) -> None:
        """A fold starts to train these epochs."""
        self._running[label] = _Pace(epochs, self.expected_s(label.trial, 1))

    def hear(self, label: JobLabel, record: Record) -> None:
        """A fold tells something."""
        self._running[label].hear(record, self._clock())

    def finish(self, label: JobLabel, seconds: float | None) -> None:
        """A fold's job has ended; `seconds` are those of one that trained all that it was to."""
        pace = self._running.pop(label)
        if seconds is not None and pace.epochs:
            self._epoch_s.append(seconds / len(pace.epochs))
            self._of_trial[label.trial].append(seconds / len(pace.epochs))

    def late(self) -> list[JobLabel]:
        """The folds to park now, each told once."""
        now = self._clock()
        late = [label for label, pace in self._running.items() if not pace.is_ending and now >= pace.due(self.at)]
        for label in late:
            self._running[label].is_ending = self._has_parked = True
        return late


class _Pace:
    """How fast a fold goes."""

    def __init__(self, epochs: range, epoch_s: float | None) -> None:
        self.epochs, self._epoch_s = epochs, epoch_s
        self._epoch_began: float | None = None
        self._last: float | None = None
        """When it last told something."""
        self._pause_s = 0.0
        self.is_ending = False
        """Whether it was asked to stop, or has finished its last epoch."""

    def hear(self, record: Record, now: float) -> None:
        if self._last is not None:
            self._pause_s = max(self._pause_s, now - self._last)
        self._last = now
        if record.event is Event.EVALUATE and self._epoch_began is not None:
            self._epoch_s = now - self._epoch_began
        if record.event is not Event.TRAIN:
            self._epoch_began = now
            self.is_ending = self.is_ending or record.epoch == self.epochs.stop

    def due(self, at: float) -> float:
        """When it is to be asked to stop, if it tells nothing until then."""
        latest = at - ENDING_S - LOOKS * self._pause_s
        if self._epoch_began is None or self._epoch_s is None:
            return latest
        if self._epoch_began + self._epoch_s > at - ENDING_S:
            return latest
        return max(latest, min(at - ENDING_S, self._epoch_began + LATE * self._epoch_s))
