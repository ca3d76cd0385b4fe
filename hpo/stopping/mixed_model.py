"""What fold scores of good trials look like: score = level + trial + fold + noise, the last three Gaussian.

Learned from all trials of a study that scored near the top. Those far below scatter otherwise and say nothing about the
good ones. From it follows what a trial will come to over all folds, once it has ended some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpo.stopping.field import Floats, Runner

ROUNDS = 12
PRIOR_DOF = 4.0
"""What is assumed before there is data, from how the incumbent's folds scatter, counts as so many observations."""
PRIOR_SHARE = 0.7
"""Of the variance of the incumbent's folds, fold effects included: the noise that is assumed before there is data."""
NEAR = 4.0
"""Standard deviations below the incumbent within which a trial is one of the good ones."""
WIDER = 2.0
"""A sampler that learns soon leaves the spread of its first trials, so their variance is taken for so many times it."""
MAX_TRIALS = 500
"""The best so many trials are looked at, so that a decision does not take longer the longer a study is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """The mean over all folds that trials are expected to come to; each an array of one or more cases."""

    mean: Floats
    deviation: Floats
    dof: float
    """Of a Student t distribution."""

    def chance(self, value: float) -> Floats:
        """Of coming to more than `value`."""
        from scipy.special import stdtr

        above: Floats = stdtr(self.dof, (self.mean - value) / np.maximum(self.deviation, 1e-12))
        return above


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedModel:
    """The fitted model."""

    level: float
    trial_variance: float
    noise_variance: float
    dof: float
    """Of the noise variance."""
    fold: Floats
    """(folds,): how much more is scored on each."""

    def outlook(self, finals: Floats) -> Outlook:
        """(cases, folds), NaN where a fold has not ended, the same ones in all cases: at least one has."""
        ended = ~np.isnan(finals[0])
        num_ended, num_left = int(ended.sum()), int((~ended).sum())
        own = (finals[:, ended] - self.fold[ended]).mean(axis=1) - self.level
        spread = self.trial_variance + self.noise_variance / num_ended
        # One far below the good trials is not of their kind, and is not drawn towards them.
        prior = np.where(own < -3 * math.sqrt(spread), 0.0, 1 / self.trial_variance)
        precision = prior + num_ended / self.noise_variance
        expected = self.level + own * (num_ended / self.noise_variance) / precision
        total = finals[:, ended].sum(axis=1) + self.fold[~ended].sum() + num_left * expected
        variance = num_left * self.noise_variance + num_left**2 / precision
        return Outlook(mean=total / len(ended), deviation=np.sqrt(variance) / len(ended), dof=min(self.dof, 30.0))


def fit(finals: Floats, incumbent: Runner) -> MixedModel:
    """The model of `finals` (trials, folds), NaN where a fold did not end. By expectation maximization."""
    finals = finals[~np.isnan(finals).all(axis=1)]
    best = np.argsort(-np.nanmean(finals, axis=1), kind="stable")[:MAX_TRIALS]
    finals = finals[best]
    if not (finals == incumbent.finals).all(axis=1).any():  # on few folds many may look better
        finals = np.concatenate([finals, incumbent.finals[None]])
    num_folds = finals.shape[1]
    prior = PRIOR_SHARE * float(incumbent.finals.var(ddof=min(1, num_folds - 1))) + 1e-12
    trial = noise = prior
    fold, dof, level = np.zeros(num_folds), PRIOR_DOF, incumbent.mean
    for _ in range(ROUNDS):
        near = float((incumbent.finals - fold).mean()) - NEAR * math.sqrt(noise + trial)
        good = finals[np.nanmean(finals - fold, axis=1) > near]
        level, fold, trial = _effects(good, fold, trial, noise, prior)
        several = good[(~np.isnan(good)).sum(axis=1) > 1] - fold
        if len(several):
            squares = float(np.nansum((several - np.nanmean(several, axis=1, keepdims=True)) ** 2))
            measured = int((~np.isnan(several)).sum()) - len(several) - (num_folds - 1) / 2
            dof = PRIOR_DOF + max(measured, 0.0)
            noise = (squares + PRIOR_DOF * prior) / dof
    return MixedModel(level=level, trial_variance=WIDER * trial, noise_variance=noise, dof=dof, fold=fold)


def _effects(good: Floats, fold: Floats, trial: float, noise: float, prior: float) -> tuple[float, Floats, float]:
    """Level, folds and variance of the trials, given those of before."""
    seen = ~np.isnan(good)
    counts = seen.sum(axis=1)
    precision = 1 / trial + counts / noise
    share = counts / precision
    level = float(np.nanmean(good - fold))
    for _ in range(3):
        own = np.where(seen, good - fold - level, 0.0).sum(axis=1) / noise / precision
        # Drawn to zero by how much folds differ, as far as is known: a fold seen by few trials has little effect.
        ridge = noise / max(float(fold.var()) + noise / 2, 1e-12)
        fold = np.where(seen, good - level - own[:, None], 0.0).sum(axis=0) / (seen.sum(axis=0) + ridge)
        level = float(share @ (np.where(seen, good - fold, 0.0).sum(axis=1) / counts) / share.sum())
    return level, fold, float((own @ own + (1 / precision).sum() + prior / 2) / (len(good) + 1))
