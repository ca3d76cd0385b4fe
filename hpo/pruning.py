"""When a trial is stopped while it runs. The step axis means the same in every trial: (fold, epoch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import optuna
from optuna.trial import TrialState

from hpo.study_config import StoppingConfig


@dataclass(frozen=True, slots=True)
class StepAxis:
    """(fold, epoch) as Optuna's one integer step: fold x `max_epochs` + epoch, epochs counted from 1."""

    max_epochs: int
    """Of the study's longest trial."""

    def step(self, fold: int, epoch: int) -> int:
        """The step of the value after `epoch` finished epochs of `fold`."""
        return fold * self.max_epochs + epoch

    def steps(self, fold: int, epoch: int) -> range:
        """The steps of `fold` up to `epoch`."""
        return range(self.step(fold, 1), self.step(fold, epoch) + 1)


class Pruner:
    """Decides, after each reported value, whether a trial goes on."""

    def __init__(self, study: optuna.Study, config: StoppingConfig, axis: StepAxis, *, maximize: bool) -> None:
        self._study, self._config, self._axis, self._maximize = study, config, axis, maximize
        self._others: list[Mapping[int, float]] | None = None

    def reason_to_stop(self, values: Mapping[int, float], fold: int, epoch: int) -> str:
        """Why a trial with intermediate `values` (by step) is stopped after `epoch` of `fold`; "" when it goes on."""
        if self._config.epochs == "none":
            return ""
        if self._others is None:  # other trials are told between ours, not during one; ours is not told yet
            told = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            self._others = [trial.intermediate_values for trial in told]
        steps = self._axis.steps(fold, epoch)
        peers = [curve for curve in self._others if steps[-1] in curve]
        if len(peers) < self._config.startup_trials:
            return ""
        best = [self._best([curve[step] for step in steps if step in curve]) for curve in (values, *peers)]
        middle = median(best[1:])
        is_worse = best[0] < middle if self._maximize else best[0] > middle
        if not is_worse:
            return ""
        where = f"fold {fold}, epoch {epoch}"
        return f"{where}: {best[0]:.4g} is worse than the median of {len(peers)} trials, {middle:.4g}"

    def _best(self, values: Sequence[float]) -> float:
        return max(values) if self._maximize else min(values)
