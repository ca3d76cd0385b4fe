"""The Pareto front of a study with several objectives: the feasible trials that no other one dominates.

FrontRace is to several objectives what hpo.pruning.Pruner is to one: it hears what trials score, stops what will not be
on the front, and says what a stopped trial is estimated to have come to.
"""

from __future__ import annotations

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hpo.console import number
from hpo.criteria import Score, as_tuple, signs
from hpo.pruning import Promotion
from hpo.stopping.dominance import Racer, dominator
from hpo.stopping.field import Floats
from hpo.study import no_completed_trial
from hpo.study_config import StoppingConfig
from hpo.tally import tally_of


class FrontRace:
    """Decides, after each fold, whether a trial goes on. One serves all trials of a sweep."""

    def __init__(self, study: optuna.Study, config: StoppingConfig, num_folds: int) -> None:
        self._study, self._config, self._num_folds = study, config, num_folds
        self._signs = np.array(signs(direction.name.lower() for direction in study.directions))
        self._told: Floats = np.empty((0, num_folds, len(self._signs)))
        """(trials, folds, objectives) of the complete trials that violate no constraint; larger is better."""
        self._numbers: list[int] = []
        self._num_read = 0

    def new_runner(self, number: int, root: int, num_epochs: int) -> Racer:
        """A trial that has not scored anything yet."""
        nothing = np.full((self._num_folds, len(self._signs)), np.nan)
        return Racer(number=number, root=root, num_epochs=num_epochs, scores=nothing)

    def hear(self, runner: Racer, fold: int, epoch: int, value: Score) -> str:
        """`runner` reports the `value` of each objective. Why it is stopped now; "" when it goes on."""
        self.note(runner, fold, epoch, value)
        return self._judge(runner, fold) if epoch == runner.num_epochs else ""

    def note(self, runner: Racer, fold: int, epoch: int, value: Score) -> None:
        """`runner` has reported the `value` of each objective; only that of a fold's last epoch counts."""
        if epoch == runner.num_epochs:
            runner.scores[fold] = self._signs * as_tuple(value)

    def judge_taken_over(self, runner: Racer) -> str:
        """Why a trial is stopped that goes on where another was; "" when it goes on."""
        ended = np.flatnonzero(~np.isnan(runner.scores).any(axis=1))
        return self._judge(runner, int(ended[-1])) if len(ended) else ""

    def _judge(self, runner: Racer, fold: int) -> str:
        """Why it is stopped after `fold`."""
        if runner.is_complete or self._config.folds == "none":
            return ""
        self._read_told()
        found = dominator(runner.scores, self._told, risk=self._config.risk)
        if found is None:
            return ""
        row, chance = found
        values = ", ".join(map(number, self._signs * runner.scores[fold]))
        return f"fold {fold}: {values} leave a chance of {chance:.2g} not to be dominated by trial {self._numbers[row]}"

    def estimate(self, runner: Racer) -> tuple[float, ...] | None:
        """What a trial that was stopped is told as: the mean of the trial that dominates it, and the mean difference to
        it on the same folds. The mean of its own folds where none does; None when no fold has ended.
        """
        ended = ~np.isnan(runner.scores).any(axis=1)
        if not ended.any():
            return None
        self._read_told()
        found = dominator(runner.scores, self._told, risk=1.0)
        ahead = runner.scores[ended] if found is None else self._told[found[0]]
        there = ahead if found is None else ahead[ended]
        expected = self._signs * (ahead.mean(axis=0) + (runner.scores[ended] - there).mean(axis=0))
        return tuple(map(float, expected))

    def to_beat(self, runner: Racer) -> tuple[float, ...] | None:
        """The mean of each objective of the trial that dominates it; None when none does."""
        self._read_told()
        found = dominator(runner.scores, self._told, risk=1.0)
        return None if found is None else tuple(map(float, self._signs * self._told[found[0]].mean(axis=0)))

    def epochs_to_climb(self, total: int = 0) -> int:
        """None: no trial is paused."""
        return 0

    def until(self, num_epochs: int, *, num_folds: int = 1) -> tuple[int, ...]:
        """All epochs of each fold."""
        return (num_epochs,) * self._num_folds

    def promotions(self, *, is_end: bool) -> list[Promotion]:
        """There is no halving with several objectives."""
        return []

    def hopeless(self, total: int) -> list[int]:
        """No trial."""
        return []

    def waiting(self) -> list[int]:
        """No trial."""
        return []

    def _read_told(self) -> None:
        """Add the trials told since the last time; ours is not told yet."""
        told = tally_of(self._study).reported()
        new = [each for each in told[self._num_read :] if each.is_feasible and None not in each.fold_scores]
        new = [each for each in new if len(each.fold_scores) == self._num_folds]
        if new:
            scores = self._signs * np.array([each.fold_scores for each in new], dtype=np.float64)
            self._told = np.concatenate([self._told, scores])
            self._numbers += [each.number for each in new]
        self._num_read = len(told)


def front_of(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of the front, the best in the first objective first. Raises NoBestTrialError."""
    numbers = set(tally_of(study).front())
    found = [trial for trial in study.get_trials(deepcopy=False) if trial.number in numbers]
    if not found:
        raise no_completed_trial(study)
    sign = signs([study.directions[0].name.lower()])[0]
    return sorted(found, key=lambda trial: (-sign * trial.values[0], trial.number))
