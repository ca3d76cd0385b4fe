"""What a sampler learns from: completed trials, stopped ones with the value they were told, or part of a long study.

Optuna's samplers leave stopped trials out, or (TPE) take any completed trial, even the worst, for better than them. A
stopped trial here counts as one that scored what it is estimated to come to, beside the best trial of now: what it was
told as, perhaps before any was complete, is not comparable.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Container, Sequence
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study, StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState

from hpo.step_axis import StepAxis
from hpo.stopping.field import estimate
from hpo.tally import CONTINUES, ESTIMATE

Space: TypeAlias = dict[str, BaseDistribution]

NUM_GOOD = 25
"""So many trials at most are good ones to Optuna's TPE (its ``default_gamma``); all others are the rest."""
TOLD = (TrialState.COMPLETE, TrialState.PRUNED)

_stopped: WeakKeyDictionary[Study, dict[int, tuple[int, FrozenTrial]]] = WeakKeyDictionary()
"""Of each study, its stopped trials as completed ones, by number; and that of the best trial beside which they were
estimated, -1 without one. They do not change as long as that is the best."""


class HistorySampler(BaseSampler):
    """`sampler`, to which a stopped trial is one that scored its estimate on this `axis`; for one trial.

    With `max_history` it sees the best `NUM_GOOD` trials and the newest others, `max_history` in all. The good trials
    are then those of an unbounded TPE as long as `max_history` is ten times `NUM_GOOD`; the rest, which TPE weighs less
    the older they are, lose their oldest.
    """

    def __init__(self, sampler: BaseSampler, axis: StepAxis, max_history: int | None = None) -> None:
        self._sampler, self._axis, self._max_history = sampler, axis, max_history
        self._view: Study | None = None

    def reseed_rng(self) -> None:
        """As the sampler's."""
        self._sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose what the sampler sees; of a trial that others went on with, what came of it."""
        every = study.get_trials(deepcopy=False)
        ahead = _ahead(study, every)
        trials = _as_sampled([_as_completed(study, each, self._axis, ahead) for each in every])
        if self._max_history is not None:
            trials = best_and_newest(trials, self._max_history, study.direction)
        if isinstance(self._sampler, GPSampler):
            trials = with_common_constraints(trials)
        self._view = cast(Study, _View(study, trials))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """As the sampler's."""
        return self._sampler.infer_relative_search_space(self._view or study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """As the sampler's."""
        return self._sampler.sample_relative(self._view or study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """As the sampler's."""
        return self._sampler.sample_independent(self._view or study, trial, name, distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler's."""
        self._sampler.after_trial(study, trial, state, values)


class _View:
    """A study with these trials, to those who read them."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool, states: Container[TrialState] | None = None, **_: Any) -> list[FrozenTrial]:
        assert not deepcopy
        return [trial for trial in self._trials if states is None or trial.state in states]


def _ahead(study: Study, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The best trial that is complete and violates no constraint; None with several objectives."""
    if study._is_multi_objective():
        return None
    choose = max if study.direction is StudyDirection.MAXIMIZE else min
    return choose(filter(_is_valid, trials), key=lambda trial: trial.values[0], default=None)


def _as_completed(study: Study, trial: FrozenTrial, axis: StepAxis, ahead: FrozenTrial | None) -> FrozenTrial:
    """A stopped `trial` that was told a value, or has an estimate of each, as one that was completed with it."""
    values = trial.values or trial.user_attrs.get(ESTIMATE)
    if trial.state is not TrialState.PRUNED or values is None:
        return trial
    known, beside = _stopped.setdefault(study, {}), -1 if ahead is None else ahead.number
    if trial.number not in known or known[trial.number][0] != beside:
        completed = copy.copy(trial)
        completed.state, completed.values = TrialState.COMPLETE, values
        if ahead is not None and trial.intermediate_values:
            there = axis.curves(ahead.intermediate_values), ahead.values[0]
            found = estimate(axis.curves(trial.intermediate_values), there)
            completed.values = values if found is None else [found]
        known[trial.number] = beside, completed
    return known[trial.number][1]


def _as_sampled(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """`trials`, those that were told last of what others went on with in the place of the first of these.

    It was sampled then: NSGA-II and CMA-ES know what they asked for by its number and its attributes.
    """
    by_number, last = {each.number: each for each in trials}, dict[int, FrozenTrial]()
    for each in trials:
        if each.state in TOLD and (root := each.user_attrs.get(CONTINUES)) in by_number:
            last[root] = each
    kept = [each for each in trials if each.state not in TOLD or CONTINUES not in each.user_attrs]
    return [_in_place_of(each, last[each.number]) if each.number in last else each for each in kept]


def _in_place_of(first: FrozenTrial, last: FrozenTrial) -> FrozenTrial:
    found = copy.copy(last)
    found.number, found._trial_id = first.number, first._trial_id
    found.system_attrs = {**first.system_attrs, **last.system_attrs}
    return found


def with_common_constraints(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """`trials`, the completed ones with no constraint that another of them lacks: Optuna's GP raises otherwise.

    Whether a job fits its memory is a constraint that is known only where it was predicted. One that was completed did.
    """
    names = [frozenset(trial.constraints) for trial in trials if trial.state is TrialState.COMPLETE]
    if len(set(names)) < 2:
        return list(trials)
    odd = {f"{_CONSTRAINTS_KEY}:{name}" for name in frozenset.union(*names) - frozenset.intersection(*names)}
    return [_without(trial, odd) if trial.state is TrialState.COMPLETE else trial for trial in trials]


def _without(trial: FrozenTrial, attributes: Container[str]) -> FrozenTrial:
    found = copy.copy(trial)
    found.system_attrs = {key: value for key, value in trial.system_attrs.items() if key not in attributes}
    return found


def best_and_newest(trials: Sequence[FrozenTrial], count: int, direction: StudyDirection) -> list[FrozenTrial]:
    """The `NUM_GOOD` best of the completed `trials` and the newest others, `count` in all, and those not told yet."""
    told = [trial for trial in trials if trial.state in TOLD]
    if len(told) <= count:
        return list(trials)
    choose = heapq.nlargest if direction is StudyDirection.MAXIMIZE else heapq.nsmallest
    best = choose(NUM_GOOD, filter(_is_valid, told), key=lambda trial: trial.values[0])
    numbers = {trial.number for trial in best}
    others = [trial.number for trial in told if trial.number not in numbers]
    numbers.update(others[len(others) - (count - len(numbers)) :])
    return [trial for trial in trials if not trial.state.is_finished() or trial.number in numbers]


def _is_valid(trial: FrozenTrial) -> bool:
    is_allowed = not trial.system_attrs or all(violation <= 0.0 for violation in trial.constraints.values())
    return trial.state is TrialState.COMPLETE and is_allowed
