"""Rules that stop a trial inside a fold, by the curve of that fold. Each returns why, or "" to let the trial go on.

`epoch` counts from 1: the last finished one. A trial is compared at this epoch of this fold with those told before that
came as far in it. How often each stops a trial that would have become the best is in docs/stopping.md.
"""

from __future__ import annotations

import numpy as np

from hpo.stopping.field import Field, Floats, Runner


def percentile(field: Field, runner: Runner, fold: int, epoch: int, *, kept: float, startup_trials: int) -> str:
    """Stop what is not among the best `kept` percent: the best value so far against those of the other trials."""
    others = _best_so_far(field.curves, fold, epoch)
    if len(others) < startup_trials:
        return ""
    bound = float(np.percentile(others, 100 - kept))
    if _best(runner, fold, epoch) >= bound:
        return ""
    what = "median" if kept == 50 else f"best {kept:g} %"
    return f"worse than the {what} of {len(others)} trials"


def asha(field: Field, runner: Runner, fold: int, epoch: int, *, min_epochs: int, reduction_factor: int) -> str:
    """Successive halving, asynchronous (Li et al. 2020, "A system for massively parallel hyperparameter tuning").

    At `min_epochs` and each time the epochs have grown by `reduction_factor`, one trial in `reduction_factor` goes on.
    """
    rung = min_epochs
    while rung < epoch:
        rung *= reduction_factor
    if rung != epoch:
        return ""
    others = field.curves[:, fold, epoch - 1]
    return _halving(others[~np.isnan(others)], float(runner.curves[fold, epoch - 1]), reduction_factor)


def hyperband(field: Field, runner: Runner, fold: int, epoch: int, *, min_epochs: int, reduction_factor: int) -> str:
    """Several successive halvings that begin at later and later epochs; a trial belongs to one of them by its root.

    Li et al. 2018, "Hyperband: a novel bandit-based approach to hyperparameter optimization".
    """
    num_brackets = 1
    while min_epochs * reduction_factor**num_brackets < runner.curves.shape[1]:
        num_brackets += 1
    bracket = runner.root % num_brackets
    mine = [row for row, root in enumerate(field.roots) if root % num_brackets == bracket]
    own = Field(num_folds=field.curves.shape[1], max_epochs=field.curves.shape[2])
    own.curves = field.curves[mine]
    begin = min_epochs * reduction_factor**bracket
    return asha(own, runner, fold, epoch, min_epochs=begin, reduction_factor=reduction_factor)


def patience(field: Field, runner: Runner, fold: int, epoch: int, *, patience: int) -> str:
    """Stop a curve that has not risen for `patience` epochs, where the incumbent's was higher by then."""
    curve = runner.curves[fold, :epoch]
    if field.incumbent is None or epoch <= patience or np.isnan(curve).any():
        return ""
    ahead = field.incumbent.curves[fold, :epoch]
    if curve[-patience:].max() > curve[:-patience].max() or not np.nanmax(ahead, initial=-np.inf) > curve.max():
        return ""
    return f"no better for {patience} epochs, and behind trial {field.incumbent.number}"


def _best(runner: Runner, fold: int, epoch: int) -> float:
    return float(np.nanmax(runner.curves[fold, :epoch]))


def _best_so_far(curves: Floats, fold: int, epoch: int) -> Floats:
    """The best value up to `epoch` of each trial that reached it in `fold`."""
    reached = curves[~np.isnan(curves[:, fold, epoch - 1]), fold, :epoch]
    return np.asarray(np.nanmax(reached, axis=1)) if len(reached) else np.empty(0)


def _halving(others: Floats, own: float, reduction_factor: int) -> str:
    """Optuna's rule: of few trials, the best goes on."""
    num_kept = max(1, (len(others) + 1) // reduction_factor)
    num_better = int((others > own).sum())
    if num_better < num_kept:
        return ""
    return f"{num_better} of {len(others)} trials are better, and {num_kept} go on"
