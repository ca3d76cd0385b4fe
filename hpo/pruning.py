"""When a trial is stopped while it runs, and what a stopped trial is told as. The step axis means the same in every
trial: (fold, epoch). The rules themselves are in hpo/stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import optuna

from hpo.stopping import epoch_rule, fold_rule, racing
from hpo.stopping.field import Field, Runner
from hpo.stopping.halving import Halving
from hpo.study import IDENTITY
from hpo.study_config import StoppingConfig
from hpo.tally import Reported, tally_of


@dataclass(frozen=True, slots=True)
class StepAxis:
    """(fold, epoch) as Optuna's one integer step: fold x `max_epochs` + epoch, epochs counted from 1."""

    max_epochs: int
    """Of the study's longest trial."""
    num_folds: int

    def step(self, fold: int, epoch: int) -> int:
        """The step of the value after `epoch` finished epochs of `fold`."""
        return fold * self.max_epochs + epoch

    @property
    def verdict(self) -> int:
        """The step after all others: what a stopped trial is estimated to have come to."""
        return self.num_folds * self.max_epochs + 1

    def fold(self, step: int) -> int:
        """The fold that `step` is of; for the verdict, the number of folds."""
        return (step - 1) // self.max_epochs

    def curves(self, values: Mapping[int, float]) -> np.ndarray:
        """(folds, epochs): values by step, without the verdict, NaN where there is none."""
        flat = np.full(self.num_folds * self.max_epochs, np.nan)
        for step, value in values.items():
            if step < self.verdict:
                flat[step - 1] = value
        return flat.reshape(self.num_folds, self.max_epochs)


def axis_of(study: optuna.Study) -> StepAxis:
    """The axis of a study that was opened."""
    identity = study.user_attrs[IDENTITY]
    config = identity["config"]
    num_folds = config["cross_validation.folds"] * config.get("cross_validation.repeats", 1)
    return StepAxis(identity["max_epochs"], num_folds)


def is_audited(number: int, share: float, *, seed: int) -> bool:
    """Whether the trial is among the `share` of trials that run to their end even if a rule would stop them."""
    return bool(np.random.default_rng((seed, number)).random() < share)


class Pruner:
    """Decides, after each reported value, whether a trial goes on. One serves all trials of a sweep."""

    def __init__(
        self,
        study: optuna.Study,
        config: StoppingConfig,
        axis: StepAxis,
        *,
        maximize: bool,
        halving: Halving | None = None,
    ) -> None:
        self._study, self._axis, self._sign, self._halving = study, axis, 1.0 if maximize else -1.0, halving
        inside = config if halving is None else config.model_copy(update={"epochs": "none"})
        self._epoch_rule, self._fold_rule = epoch_rule(inside), fold_rule(config)
        self._config = config
        self._pauses: dict[int, str] = {}
        """Why racing stopped trials, by number."""
        self._looked: tuple[tuple[int, set[int]], tuple[int, str] | None] | None = None
        """What trials were known at the last second look, and what it found."""
        self._field = Field(num_folds=axis.num_folds, max_epochs=axis.max_epochs)

    def new_runner(self, number: int, root: int, num_epochs: int) -> Runner:
        """A trial that has not scored anything yet."""
        nothing = np.full((self._axis.num_folds, self._axis.max_epochs), np.nan)
        return Runner(number=number, root=root, curves=nothing, finals=nothing[:, 0].copy(), num_epochs=num_epochs)

    def hear(self, runner: Runner, fold: int, epoch: int, value: float) -> str:
        """`runner` reports a `value`. Why it is stopped now; "" when it goes on."""
        self.note(runner, fold, epoch, value)
        return self.judge(runner, fold, epoch)

    def note(self, runner: Runner, fold: int, epoch: int, value: float) -> None:
        """`runner` has reported a `value`."""
        runner.curves[fold, epoch - 1] = self._sign * value
        if epoch == runner.num_epochs:
            runner.finals[fold] = self._sign * value

    def judge(self, runner: Runner, fold: int, epoch: int) -> str:
        """Why it is stopped after this epoch of this fold; "" when it goes on."""
        if runner.is_complete:
            return ""
        self._read_told()
        is_end = epoch == runner.num_epochs
        if is_end:
            reason = self._fold_rule(self._field, runner)
        else:
            reason = self._epoch_rule(self._field, runner, fold, epoch)
        if not reason:
            return ""
        reason = f"fold {fold}, epoch {epoch}: {self._sign * runner.curves[fold, epoch - 1]:.4g} {reason}"
        if (self._config.folds if is_end else self._config.epochs) == "racing":
            self._pauses[runner.number] = reason
        return reason

    def judge_taken_over(self, runner: Runner) -> str:
        """The same of a trial that goes on where another was: by a fold that ended, else by the one that was begun."""
        seen = ~np.isnan(runner.curves)
        ended = np.flatnonzero(~np.isnan(runner.finals))
        begun = np.flatnonzero(seen.any(axis=1))
        if not len(begun):
            return ""
        fold = int(ended[-1] if len(ended) else begun[-1])
        return self.judge(runner, fold, int(np.flatnonzero(seen[fold])[-1]) + 1)

    def is_pause(self, runner: Runner, reason: str) -> bool:
        """Whether it was stopped for this reason by racing, which may take it up again."""
        return self._pauses.get(runner.number) == reason

    def estimate(self, runner: Runner) -> float | None:
        """What a trial that was stopped is told as: the incumbent's mean and the mean difference to it.

        The difference is taken where each fold was last seen, on the same fold at the same epoch, so that neither an
        easy fold nor an early epoch counts for or against the trial. None when it has reported nothing.
        """
        self._read_told()
        rows = [(fold, np.flatnonzero(~np.isnan(curve))) for fold, curve in enumerate(runner.curves)]
        last = [(fold, int(seen[-1])) for fold, seen in rows if len(seen)]
        if not last:
            return None
        ahead = self._field.incumbent
        if ahead is None:
            return self._sign * float(np.mean([runner.curves[at] for at in last]))
        differences = [runner.curves[at] - _at(ahead, *at) for at in last]
        return self._sign * float(ahead.mean + np.mean(differences))

    def promotable(self, *, is_end: bool) -> tuple[int, int, int] | None:
        """Number of a paused trial that goes on, the epochs it has reached, and those it goes on to."""
        if self._halving is None:
            return None
        self._read_told()
        found = self._halving.promotable(self._field, tally_of(self._study).taken_up(), is_end=is_end)
        return None if found is None else (*found, self._halving.next_rung(found[1]))

    def paused(self, total: int) -> tuple[list[int], list[int]]:
        """Numbers of the trials paused at a rung: those that no result of `total` trials could promote any more, and
        all, the least promising first."""
        if self._halving is None:
            return [], []
        self._read_told()
        hopeless, waiting = self._halving.hopeless(self._field, total), self._halving.waiting(self._field)
        return [*map(self._field.number, hopeless)], [*map(self._field.number, waiting)]

    def second_look(self) -> tuple[int, str] | None:
        """Number of a stopped trial that is to be taken up again, and why; None when none is worth it."""
        self._read_told()
        known = self._field.num_added, tally_of(self._study).taken_up()
        if self._looked is None or self._looked[0] != known:  # asked again at each event while a device is free
            self._looked = known, self._look(known[1])
        return self._looked[1]

    def _look(self, aside: set[int]) -> tuple[int, str] | None:
        found = racing.worth_a_second_look(self._field, aside, risk=self._config.risk)
        if found is None or self._field.incumbent is None:
            return None
        runner, chance = found
        return runner.number, f"it has a chance of {chance:.2g} to beat trial {self._field.incumbent.number}"

    def to_beat(self, runner: Runner) -> float | None:
        """The value of the best trial that ran all its folds, if there is one; the same for every `runner`."""
        self._read_told()
        return None if self._field.incumbent is None else self._sign * self._field.incumbent.mean

    def _read_told(self) -> None:
        """Add the trials told since the last time; ours is not told yet."""
        told = tally_of(self._study).reported()
        self._field.add([self._runner(each) for each in told[self._field.num_added :]])

    def _runner(self, told: Reported) -> Runner:
        scores = [np.nan if score is None else self._sign * score for score in told.fold_scores]
        finals = np.array([*scores, *[np.nan] * (self._axis.num_folds - len(scores))])
        curves = self._sign * self._axis.curves(told.values)
        num_epochs = told.params.get("training.epochs", self._axis.max_epochs)
        return Runner(
            number=told.number,
            root=told.root,
            curves=curves,
            finals=finals,
            num_epochs=num_epochs,
            is_paused=told.is_paused,
            is_feasible=told.is_feasible,
        )


def _at(runner: Runner, fold: int, column: int) -> float:
    """Its value in `fold` at that epoch, or at its last one when it trained for fewer."""
    curve = runner.curves[fold, : column + 1]
    return float(curve[~np.isnan(curve)][-1])
