"""What a search has spent, and what is to come of it: for its budgets, and for whoever waits for its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from hpo.budget import Spent
from hpo.deadline import Deadline
from hpo.definition import StudyDefinition
from hpo.resources import Resources
from hpo.spending import Meter, budget_of, spent
from hpo.study import places_taken
from hpo.tally import AUDIT, REVIVES, tally_of
from hpo.trials import Running, Trials


class Outlook:
    """Of one sweep. Used by one thread."""

    def __init__(
        self,
        definition: StudyDefinition,
        study: optuna.Study,
        trials: Trials,
        resources: Resources,
        deadline: Deadline,
        meter: Meter,
    ) -> None:
        self._definition, self._study, self._trials, self._resources = definition, study, trials, resources
        self._deadline, self._meter, self._total = deadline, meter, budget_of(definition).total

    def spent(self, seconds: float) -> Spent:
        """By the study and its other processes, and by the jobs that run here; `seconds` are those of this sweep."""
        so_far = spent(self._study, self._definition)
        has_time = self._deadline.fits(None, 1 if self._is_one_queued else self._trials.first_epochs)
        device_s = so_far.device_s + self._meter.running_s
        return replace(so_far, device_s=device_s, seconds=seconds, has_time=has_time)

    def spent_and_due(self, seconds: float) -> Spent:
        """And what promotions will take when no more trials are asked for; a trial that waits was begun before."""
        so_far, epochs, side_by_side = self.spent(seconds), self._trials.epochs_to_climb(), self._resources.max_trials
        epoch_s = self._deadline.expected_s(None, 1)
        if not epochs or epoch_s is None or self._is_one_queued:
            return so_far
        has_time = so_far.has_time and self._deadline.fits(None, self._trials.first_epochs + epochs / side_by_side)
        climb_s, device_s = epochs * epoch_s / side_by_side, epochs * epoch_s * self._meter.num_devices
        return replace(so_far, has_time=has_time, climb_s=climb_s, climb_device_s=device_s)

    def job_seconds_left(self, running: Iterable[Running], *, asks: bool) -> float | None:
        """Seconds of all jobs to come, of those trials too that run here and, where it still `asks`, are to be begun.

        What a rule would stop early is not known, and counts. None before the first job has ended.
        """
        epoch_s, taken = self._deadline.expected_s(None, 1), places_taken(self._study)
        if epoch_s is None:
            return None
        to_ask = max(0, self._total - taken) if asks else 0
        new = to_ask * self._trials.first_epochs * self._trials.first_jobs
        begun = sum(each.folds.epochs_left for each in running if not _is_promotion(each) and not each.folds.is_over)
        return epoch_s * (new + begun + self._trials.epochs_to_climb(taken + to_ask))

    @property
    def _is_one_queued(self) -> bool:
        """Whether a trial waits; it may have little left to train."""
        return tally_of(self._study).states()[TrialState.WAITING] > 0


def _is_promotion(running: Running) -> bool:
    """Whether its epochs are among those of the climb."""
    return REVIVES in running.trial.user_attrs and AUDIT not in running.trial.user_attrs
