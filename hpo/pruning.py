"""When a trial is stopped or paused while it runs, who goes on, and what a stopped trial is told as. The rules
themselves are in hpo/stopping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna

from hpo.step_axis import StepAxis
from hpo.stopping import epoch_rule, fold_rule
from hpo.stopping.field import Field, Runner, estimate
from hpo.stopping.halving import Halving
from hpo.study import IDENTITY
from hpo.study_config import StoppingConfig
from hpo.tally import Reported, tally_of


def axis_of(study: optuna.Study) -> StepAxis:
    """The axis of a study that was opened."""
    identity = study.user_attrs[IDENTITY]
    config = identity["config"]
    num_folds = config["cross_validation.folds"] * config.get("cross_validation.repeats", 1)
    return StepAxis(identity["max_epochs"], num_folds, identity.get("base_epochs"))


def is_audited(number: int, share: float, *, seed: int) -> bool:
    """Whether the trial is among the `share` of trials that run to their end even if a rule would stop them."""
    return bool(np.random.default_rng((seed, number)).random() < share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """A paused trial goes on."""

    number: int
    until: tuple[int, ...]
    """Epochs of each fold, when it is paused again or has ended."""
    num_epochs: int
    """Of a whole fold of it."""
    num_jobs: int
    """Folds that it trains until then."""
    to_beat: float | None = None
    """The best value, where it goes on for the audit; else None."""


class Pruner:
    """Decides, after each reported value, whether a trial goes on. One serves all trials of a sweep."""

    def __init__(  # noqa: PLR0913 - what decides
        self,
        study: optuna.Study,
        config: StoppingConfig,
        axis: StepAxis,
        *,
        maximize: bool,
        halving: Halving | None = None,
        seed: int = 0,
        target: float | None = None,
    ) -> None:
        """`seed` chooses what is audited; a paused trial that seems to reach the `target` goes on to its end."""
        self._study, self._axis, self._sign, self._halving = study, axis, 1.0 if maximize else -1.0, halving
        self._epoch_rule, self._fold_rule = epoch_rule(config), fold_rule(config)
        self._audit, self._seed, self._target = config.audit, seed, target
        self._asked: tuple[Any, list[Promotion]] = None, []
        """What was known when promotions were asked for last, and what was found."""
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
        return f"fold {fold}, epoch {epoch}: {self._sign * runner.curves[fold, epoch - 1]:.4g} {reason}"

    def judge_taken_over(self, runner: Runner) -> str:
        """The same of a trial that goes on where another was: by a fold that ended, else by the one that was begun."""
        seen = ~np.isnan(runner.curves)
        ended = np.flatnonzero(~np.isnan(runner.finals))
        begun = np.flatnonzero(seen.any(axis=1))
        if not len(begun):
            return ""
        fold = int(ended[-1] if len(ended) else begun[-1])
        return self.judge(runner, fold, int(np.flatnonzero(seen[fold])[-1]) + 1)

    def estimate(self, runner: Runner) -> float | None:
        """What a trial that was stopped is told as, by the best one that is complete; None when it reported nothing."""
        self._read_told()
        found = self._estimate(runner)
        return None if found is None else self._sign * found

    def _estimate(self, runner: Runner) -> float | None:
        ahead = self._field.incumbent
        return estimate(runner.curves, None if ahead is None else (ahead.curves, ahead.mean))

    def until(self, num_epochs: int, *, num_folds: int = 1) -> tuple[int, ...]:
        """Epochs of each fold after which a new trial is paused that is to begin so many folds; all without halving."""
        rungs = [] if self._halving is None else range(len(self._halving.rungs))
        found = (self._halving.until(rung, num_epochs) for rung in rungs if self._halving)
        wide = (until for until in found if sum(map(bool, until)) >= num_folds)
        return next(wide, (num_epochs,) * self._axis.num_folds)

    def promotions(self, *, is_end: bool) -> list[Promotion]:
        """The paused trials that go on now, the first one first."""
        if self._halving is None:
            return []
        self._read_told()
        tally = tally_of(self._study)
        aside, runs = tally.taken_up(), bool(tally.running())
        is_end = is_end and not tally.has_new()  # or some are still to come to the first rung
        known = self._field.num_added, int(self._field.is_paused.sum()), aside, is_end, runs
        if self._asked[0] != known:  # else nothing has changed
            found = self._on_target(self._halving, aside) or self._promoted(self._halving, aside, is_end)
            self._asked = known, found or (self._audited(self._halving, aside) if is_end and not runs else [])
        return self._asked[1]

    def _promoted(self, halving: Halving, aside: set[int], is_end: bool) -> list[Promotion]:
        found = halving.promotions(self._field, aside, is_end=is_end)
        return [_to(runner, halving, rung) for runner, rung in found]

    def _on_target(self, halving: Halving, aside: set[int]) -> list[Promotion]:
        """The best of those that seem to reach the target."""
        if self._target is None:
            return []
        waiting = {each: self._estimate(each) for each in halving.waiting(self._field) if each.number not in aside}
        target = self._sign * self._target
        reaching = {each: value for each, value in waiting.items() if value is not None and value >= target}
        best = max(reaching, key=lambda each: reaching[each], default=None)
        return [] if best is None else [_to(best, halving, len(halving.rungs) - 1)]

    def _audited(self, halving: Halving, aside: set[int]) -> list[Promotion]:
        """Those of the audit that were left behind, once all others have ended."""
        if (ahead := self._field.incumbent) is None:
            return []
        left = (each for each in halving.waiting(self._field) if self._is_audited(each) and each.number not in aside)
        ends = (_to(each, halving, len(halving.rungs) - 1) for each in left)
        return [replace(each, to_beat=self._sign * ahead.mean) for each in ends]

    def _is_audited(self, runner: Runner) -> bool:
        return is_audited(runner.root, self._audit, seed=self._seed)

    def epochs_to_climb(self, total: int = 0) -> int:
        """Epochs, over all folds, that promotions would take if no other trial came, or as many as make `total`."""
        if self._halving is None:
            return 0
        self._read_told()
        return self._halving.epochs_to_climb(self._field, self._axis.max_epochs, total)

    def hopeless(self, total: int) -> list[int]:
        """Numbers of the trials paused at a rung that no result of `total` trials could promote any more."""
        if self._halving is None:
            return []
        self._read_told()
        aside = tally_of(self._study).taken_up()
        found = (each for each in self._halving.hopeless(self._field, total) if not self._is_audited(each))
        return [each.number for each in found if each.number not in aside]

    def waiting(self) -> list[int]:
        """Numbers of the trials paused at a rung, the least promising first."""
        if self._halving is None:
            return []
        self._read_told()
        aside = tally_of(self._study).taken_up()
        return [each.number for each in self._halving.waiting(self._field) if each.number not in aside]

    def to_beat(self, runner: Runner) -> float | None:
        """The value of the best trial that ran all its folds, if there is one; the same for every `runner`."""
        self._read_told()
        return None if self._field.incumbent is None else self._sign * self._field.incumbent.mean

    def _read_told(self) -> None:
        """Add the trials told since the last time; ours is not told yet."""
        told = tally_of(self._study).reported()
        self._field.add([self._runner(each) for each in told[self._field.num_added :]])
        if self._halving is not None and (numbers := tally_of(self._study).given_up()):
            self._field.give_up(numbers)

    def _runner(self, told: Reported) -> Runner:
        scores = [np.nan if score is None else self._sign * score for score in told.fold_scores]
        finals = np.array([*scores, *[np.nan] * (self._axis.num_folds - len(scores))])
        curves = self._sign * self._axis.curves(told.values)
        num_epochs = told.params.get("training.epochs", self._axis.base_epochs or self._axis.max_epochs)
        return Runner(
            number=told.number,
            root=told.root,
            curves=curves,
            finals=finals,
            num_epochs=num_epochs,
            is_paused=told.is_paused,
            is_feasible=told.is_feasible,
        )


def _to(runner: Runner, halving: Halving, rung: int) -> Promotion:
    until, reached = halving.until(rung, runner.num_epochs), (~np.isnan(runner.curves)).sum(axis=1)
    num_jobs = int((reached < until).sum())
    return Promotion(number=runner.number, until=until, num_epochs=runner.num_epochs, num_jobs=num_jobs)
