"""Rules that stop a trial between folds, by the folds that ran to their end. Each returns why, or "" to go on.

All compare with the incumbent, the best trial that ran all its folds: on the same folds, where that matters. How often
each stops a trial that would have become the best is in docs/stopping.md.
"""

from __future__ import annotations

import numpy as np

from hpo.stopping.field import Field, Runner


def aggressive(field: Field, runner: Runner) -> str:
    """Stop when the mean so far is below the incumbent's mean (Bergman, Purucker and Hutter 2024, arXiv 2405.03389)."""
    if field.incumbent is None or runner.mean >= field.incumbent.mean:
        return ""
    return f"its mean is below that of trial {field.incumbent.number}"


def forgiving(field: Field, runner: Runner) -> str:
    """Stop when the mean so far is below the incumbent's worst fold (the same paper)."""
    if field.incumbent is None or runner.mean >= field.incumbent.finals.min():
        return ""
    return f"its mean is below the worst fold of trial {field.incumbent.number}"


def wilcoxon(field: Field, runner: Runner, *, p_value: float) -> str:
    """Stop when a signed-rank test on the same folds finds it worse than the incumbent, as Optuna's WilcoxonPruner.

    With n folds the smallest p is 1 / 2^n: at 0.1 nothing is stopped before the fourth.
    """
    if field.incumbent is None:
        return ""
    differences = (runner.finals - field.incumbent.finals)[~np.isnan(runner.finals)]
    if len(differences) < 2 or runner.mean >= field.incumbent.mean:
        return ""
    from scipy.stats import wilcoxon as test

    p = float(test(differences, alternative="less", zero_method="zsplit").pvalue)
    return f"worse than trial {field.incumbent.number} by a signed-rank test (p {p:.2g})" if p < p_value else ""


def median(field: Field, runner: Runner, *, startup_trials: int) -> str:
    """Stop when the mean so far is below the median of the other trials' means over the same folds."""
    ended = ~np.isnan(runner.finals)
    means = field.finals[:, ended].mean(axis=1)
    means = means[~np.isnan(means)]
    if len(means) < startup_trials or runner.mean >= np.median(means):
        return ""
    return f"its mean is below the median of {len(means)} trials"
