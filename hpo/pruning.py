"""When a trial is stopped while it runs. The step axis means the same in every trial: (fold, epoch)."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import median

import optuna

from hpo.study_config import StoppingConfig
from hpo.tally import tally_of


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

    def fold(self, step: int) -> int:
        """The fold that `step` is of."""
        return (step - 1) // self.max_epochs


class Pruner:
    """Decides, after each reported value, whether a trial goes on. One serves all trials of a sweep."""

    def __init__(self, study: optuna.Study, config: StoppingConfig, axis: StepAxis, *, maximize: bool) -> None:
        self._study, self._config, self._axis, self._maximize = study, config, axis, maximize
        self._num_read = 0
        self._peers: defaultdict[int, list[float]] = defaultdict(list)
        """By step: the best value so far in its fold of each trial that was told and reported there, sorted."""

    def reason_to_stop(self, values: Mapping[int, float], fold: int, epoch: int) -> str:
        """Why a trial with intermediate `values` (by step) is stopped after `epoch` of `fold`; "" when it goes on."""
        if self._config.epochs == "none":
            return ""
        self._read_told()
        steps = self._axis.steps(fold, epoch)
        peers = self._peers[steps[-1]]
        if len(peers) < self._config.startup_trials:
            return ""
        best = self._best(values[step] for step in steps if step in values)
        middle = median(peers[(len(peers) - 1) // 2 : len(peers) // 2 + 1])
        is_worse = best < middle if self._maximize else best > middle
        if not is_worse:
            return ""
        where = f"fold {fold}, epoch {epoch}"
        return f"{where}: {best:.4g} is worse than the median of {len(peers)} trials, {middle:.4g}"

    def _read_told(self) -> None:
        """Add the trials told since the last time; ours is not told yet."""
        curves = tally_of(self._study).curves()
        for curve in curves[self._num_read :]:
            for _, steps in groupby(sorted(curve), key=self._axis.fold):
                best: float | None = None
                for step in steps:
                    best = self._best([curve[step]] if best is None else [best, curve[step]])
                    insort(self._peers[step], best)
        self._num_read = len(curves)

    def _best(self, values: Iterable[float]) -> float:
        return max(values) if self._maximize else min(values)
