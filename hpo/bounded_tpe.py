"""TPE that models part of a long study: what it costs per trial grows with the trials it looks at."""

from __future__ import annotations

import heapq
from collections.abc import Container, Sequence
from typing import Any, TypeAlias, cast

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

Space: TypeAlias = dict[str, BaseDistribution]

NUM_GOOD = 25
"""So many trials at most are good ones to Optuna's TPE (its ``default_gamma``); all others are the rest."""
TOLD = (TrialState.COMPLETE, TrialState.PRUNED)


class BoundedTPESampler(TPESampler):
    """Optuna's TPE on the best `NUM_GOOD` trials and the newest others, `max_history` in all.

    The good trials are those of an unbounded TPE as long as `max_history` is ten times `NUM_GOOD`; the rest, which it
    weighs less the older they are, lose their oldest.
    """

    def __init__(self, max_history: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_history = max_history
        self._part: Study | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the trials to model; a sampler of ours asks for one trial only."""
        super().before_trial(study, trial)
        trials = best_and_newest(study.get_trials(deepcopy=False), self._max_history, study.direction)
        self._part = cast(Study, _PartOfStudy(study, trials))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """As Optuna's."""
        return super().infer_relative_search_space(self._part or study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """As Optuna's."""
        return super().sample_relative(self._part or study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """As Optuna's."""
        return super().sample_independent(self._part or study, trial, name, distribution)


class _PartOfStudy:
    """A study with some of its trials, to those who read it."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool, states: Container[TrialState] | None = None, **_: Any) -> list[FrozenTrial]:
        assert not deepcopy
        return [trial for trial in self._trials if states is None or trial.state in states]


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
