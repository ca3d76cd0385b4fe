"""What a study has spent: device seconds and the times of its folds, kept in its trials and summed over all of them.

A trial's share is written when one of its jobs ends, however it ended, by Ctrl-C too; so what other processes and
earlier sweeps spent counts. What was running when a process was killed with kill -9 is lost, up to the jobs that had
ended.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from hpo.budget import Budget, Spent, is_improvement, trials_without_improvement
from hpo.definition import StudyDefinition
from hpo.events import JobFinished, JobLabel, JobProgress
from hpo.sampling import grid_size
from hpo.study import SPLIT_ID, places_taken
from hpo.tally import DEVICE_SECONDS, FOLD_SCORES, SAMPLED, Tally, tally_of
from training.run_dir import Event

FOLD_TIMES = "hpo:fold_times"
"""Trial attribute: by fold, the seconds that a whole one takes, by those of its epochs that its newest job trained, and
its devices; null where no job trained all that it was to."""
EPOCHS = "training.epochs"


def budget_of(definition: StudyDefinition) -> Budget:
    """The limits of a study."""
    config, points = definition.config.budget, grid_size(definition)
    total = config.trials if points is None else min(config.trials, points)
    return Budget(config=config, total=total, maximize=definition.config.objectives[0].direction == "maximize")


def spent(study: optuna.Study, definition: StudyDefinition) -> Spent:
    """What `study` has come to, but for jobs that run. Without ``patience`` nobody asks for the streak: it is 0."""
    tally, patience = tally_of(study), definition.config.budget.patience
    return Spent(
        trials=places_taken(study),
        device_s=tally.device_seconds(),
        best_value=tally.best_value(),
        streak=0 if patience is None else _streak(study, tally, definition, patience),
    )


def _streak(study: optuna.Study, tally: Tally, definition: StudyDefinition, patience: int) -> int:
    folds = definition.job.cross_validation.folds
    maximize = definition.config.objectives[0].direction == "maximize"

    def scores(trial_id: int) -> tuple[list[float | None], str | None]:
        attributes = study._storage.get_trial(trial_id).user_attrs
        return list(attributes.get(FOLD_SCORES) or []), attributes.get(SPLIT_ID)

    def is_better(ours: int, theirs: int) -> bool:
        (own, split_id), (other, other_split) = scores(ours), scores(theirs)
        other = other if split_id == other_split else []  # on other samples there is nothing to pair
        return is_improvement(own, other, folds=folds, maximize=maximize)

    return trials_without_improvement(tally.told(), is_better, maximize=maximize, at_most=patience)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldTime:
    """What a whole fold takes."""

    seconds: float
    num_devices: int
    epochs: int


def fold_times(study: optuna.Study, definition: StudyDefinition) -> list[FoldTime]:
    """Of all folds that were measured, in this definition's epochs where the trial did not sample its own."""
    tally, fixed = tally_of(study), definition.job.training.epochs
    is_searched = EPOCHS in definition.config.search_space
    epochs = {number: params.get(EPOCHS) for number, params in tally.attributes(SAMPLED)} if is_searched else {}
    return [
        FoldTime(seconds=time[0], num_devices=time[1], epochs=epochs.get(number) or fixed)
        for number, times in tally.attributes(FOLD_TIMES)
        for time in times
        if time is not None
    ]


class Meter:
    """What the jobs of one sweep take. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.num_devices = 1
        """Of the job that began last."""
        self._running: dict[JobLabel, tuple[float, int]] = {}
        """When it began to train, and on how many devices."""
        self._device_s: defaultdict[int, float] = defaultdict(float)
        self._fold_times: defaultdict[int, dict[int, tuple[float, int]]] = defaultdict(dict)

    @property
    def running_s(self) -> float:
        """Device seconds of the jobs that run, since they began to train."""
        now = self._clock()
        return sum((now - began) * num_devices for began, num_devices in self._running.values())

    def hear(self, event: JobProgress) -> None:
        """A job tells something."""
        if event.record.event is Event.START:
            self.num_devices = int(event.record.values["world_size"])
            self._running.setdefault(event.label, (self._clock(), self.num_devices))

    def write(self, trial: optuna.Trial, event: JobFinished, share: float | None) -> None:
        """A job of `trial` has ended; add it to what the trial took. `share` is the part of its fold that it trained;
        None where it did not come as far as it was to."""
        self._running.pop(event.label, None)
        if event.usage is None or event.label.fold is None:
            return
        self._device_s[trial.number] += event.usage.device_s
        written: dict[str, Any] = {DEVICE_SECONDS: self._device_s[trial.number]}
        if share:
            times = self._fold_times[trial.number]
            times[event.label.fold] = (event.usage.seconds / share, event.usage.num_devices)
            written[FOLD_TIMES] = [times.get(fold) for fold in range(max(times) + 1)]
        with contextlib.suppress(UpdateFinishedTrialError):  # it was ended from outside
            for key, value in written.items():
                trial.set_user_attr(key, value)
