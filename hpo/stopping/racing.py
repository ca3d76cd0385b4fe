"""The rule of our own: pause whatever falls behind, and come back to what deserves it.

A trial goes on from fold to fold while it is more likely than not to become the best; otherwise it is paused, and its
folds are kept. When all new trials have had their turn, the paused ones are looked at again, with all that was learned
meanwhile: while there is one with a chance of at least `risk` to become the best, the likeliest goes on. So what is
paused too early costs nothing but its turn, and only what is given up for good must be given up with confidence.

Within a trial's first fold, a curve is compared with those that earlier trials had at the same share of the fold, and
what became of them. Early epochs of a later fold say next to nothing that its first fold had not said, so later folds
are judged at their ends. docs/stopping.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Container
from functools import lru_cache

import numpy as np

from hpo.stopping.field import Field, Floats, Runner
from hpo.stopping.mixed_model import MixedModel, fit

EVEN = 0.5
"""A trial goes on to its next fold while it is at least this likely to become the best."""
WATCHED = 0.5
"""Share of a first fold's epochs that every trial trains."""
DOUBT = 1.0
"""How many imaginary earlier trials, alike so far, became as good as the incumbent: a few real ones that failed are no
proof that all do."""
MAX_CURVES = 500
"""The newest so many curves are compared with."""


def between_folds(field: Field, runner: Runner, *, risk: float) -> str:
    """Pause a trial that is not likely enough to become the best, by the folds that ran to their end."""
    chance = chance_to_win(field, runner)
    limit = risk if runner.root in field else EVEN  # one that was taken up again has proved its worth
    return "" if chance is None or chance >= limit else _reason(field, chance)


def within_fold(field: Field, runner: Runner, fold: int, epoch: int, *, risk: float) -> str:
    """Give up a trial in its first fold when its curve leaves it too little chance to become the best."""
    if not np.isnan(runner.finals).all():
        return ""
    chance = chance_to_win(field, runner, fold)
    return "" if chance is None or chance >= risk else _reason(field, chance)


def worth_a_second_look(field: Field, aside: Container[int] = (), *, risk: float) -> tuple[Runner, float] | None:
    """The paused trial that is likeliest to become the best, and its chance; None when none has a chance of `risk`.

    Those with numbers in `aside` are left out.
    """
    paused = [runner for runner in field.paused() if runner.number not in aside]
    chances = [chance_to_win(field, runner) or 0.0 for runner in paused]
    if not chances or max(chances) < risk:
        return None
    return paused[int(np.argmax(chances))], max(chances)


def chance_to_win(field: Field, runner: Runner, fold: int | None = None) -> float | None:
    """Of having a better mean over all folds than the incumbent; None when it is too early to say.

    Judged by the folds that ended, or before one has by the curve of `fold`; None is the one that was begun.
    """
    if field.incumbent is None:
        return None
    model = _model(field, field.num_added)
    if not np.isnan(runner.finals).all():
        return float(model.outlook(runner.finals[None]).chance(field.incumbent.mean)[0])
    begun = np.flatnonzero(~np.isnan(runner.curves).all(axis=1))
    if fold is None and not len(begun):
        return None
    return _chance_in_fold(field, model, runner, int(begun[0]) if fold is None else fold)


def _chance_in_fold(field: Field, model: MixedModel, runner: Runner, fold: int) -> float | None:
    assert field.incumbent is not None
    curve = runner.curves[fold][~np.isnan(runner.curves[fold])]
    ends, weights = _likely_ends(field, curve, fold, runner.num_epochs, model.noise_variance)
    if len(curve) < max(WATCHED * runner.num_epochs, 1) or not len(ends):
        return None
    finals = np.full((len(ends), len(model.fold)), np.nan)
    finals[:, fold] = ends
    chances = model.outlook(finals).chance(field.incumbent.mean)
    return float((weights @ chances + DOUBT * EVEN) / (weights.sum() + DOUBT))


def _likely_ends(field: Field, curve: Floats, fold: int, num_epochs: int, noise: float) -> tuple[Floats, Floats]:
    """What `fold` may end at, one for each earlier curve in it, and how much each is to be believed.

    Earlier curves near this one count; what they gained from here on is moved along a line through where they were and
    how they rose.
    """
    there, rise, gain = _earlier(field, field.num_added, fold, len(curve), num_epochs)
    if not len(there):
        return np.empty(0), np.empty(0)
    distance, bend = there - curve[-1], rise - (curve[-1] - curve[max(len(curve) - 2, 0)])
    scale = 1.48 * float(np.median(np.abs(there - np.median(there)))) * len(there) ** -0.2
    weights = np.exp(-0.5 * (distance / max(scale, 2 * math.sqrt(noise))) ** 2)
    line = np.c_[np.ones_like(distance), distance, bend]
    ridge = np.diag([1e-9, 0.1 * there.var() + noise, 0.1 * rise.var() + noise])
    heavy = (weights + 1e-3)[:, None] * line
    slope = np.linalg.solve(line.T @ heavy + ridge, heavy.T @ gain)
    return curve[-1] + slope[0] + gain - line @ slope, weights


@lru_cache(maxsize=256)
def _earlier(field: Field, num_added: int, fold: int, epoch: int, num_epochs: int) -> tuple[Floats, Floats, Floats]:
    """Where earlier trials were in `fold` after this share of it, how they rose then, and what they gained after."""
    ended = np.flatnonzero(~np.isnan(field.finals[:, fold]))[-MAX_CURVES:]
    share, before = epoch / num_epochs, max(epoch - 1, 1) / num_epochs
    there = np.array([_at(field.curves[row, fold], share) for row in ended])
    rise = there - np.array([_at(field.curves[row, fold], before) for row in ended])
    return there, rise, field.finals[ended, fold] - there


def _at(curve: Floats, share: float) -> float:
    """Its value after that share of its epochs, between two of them if need be."""
    values = curve[~np.isnan(curve)]
    return float(np.interp(share * len(values), np.arange(1, len(values) + 1), values))


@lru_cache(maxsize=4)
def _model(field: Field, num_added: int) -> MixedModel:
    """Fitted anew when trials were added."""
    assert field.incumbent is not None
    return fit(field.finals, field.incumbent)


def _reason(field: Field, chance: float) -> str:
    assert field.incumbent is not None
    return f"leaves a chance of {chance:.2g} to beat trial {field.incumbent.number}"
