"""The rule for several objectives, on scores made by hand: larger is better."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from hpo.stopping.dominance import dominates, dominator
from hpo.stopping.field import Floats

NAN = float("nan")
EASY = np.array([0.0, 0.1, -0.1, 0.0])
"""How much more is scored on each of four folds, by every trial."""
NOISE = np.array([0.01, -0.01, -0.01, 0.01])


def told(*trials: tuple[float, float], noise: float = 1.0) -> Floats:
    """Trials of four folds with an accuracy that is noisy, every other one in the opposite way, and an exact size."""
    signs = [1.0 if number % 2 == 0 else -1.0 for number in range(len(trials))]
    rows = [
        np.c_[accuracy + EASY + sign * noise * NOISE, [-size] * 4]
        for sign, (accuracy, size) in zip(signs, trials, strict=True)
    ]
    return np.array(rows)


def ended(accuracies: Sequence[float], size: float) -> Floats:
    """A trial that has ended its first folds with these accuracies, on top of how easy each fold is."""
    values = [*(accuracy + easy for accuracy, easy in zip(accuracies, EASY, strict=False))]
    rows = [[value, -size] for value in values] + [[NAN, NAN]] * (4 - len(values))
    return np.array(rows)


def test_a_trial_dominates_one_that_it_equals_but_for_one_objective_and_not_its_equal() -> None:
    assert dominates((0.9, 3.0), (0.8, 3.0))
    assert not dominates((0.9, 3.0), (0.9, 3.0))
    assert not dominates((0.9, 2.0), (0.8, 3.0))


def test_what_is_far_behind_in_one_objective_and_no_better_in_the_other_is_dominated() -> None:
    others = told((0.8, 100), (0.6, 50))
    assert dominator(ended([0.5], 100), others, risk=0.1) == (0, pytest.approx(0.0, abs=0.02))
    assert dominator(ended([0.5], 101), others, risk=0.1) is not None


def test_what_is_better_in_an_exact_objective_goes_on_however_bad_it_is_in_the_other() -> None:
    assert dominator(ended([0.1, 0.1, 0.1], 49), told((0.8, 100), (0.6, 50)), risk=0.1) is None


def test_what_is_behind_by_less_than_the_noise_goes_on() -> None:
    for noise, is_stopped in ((1.0, True), (30.0, False)):
        found = dominator(ended([0.7], 100), told((0.8, 100), (0.6, 50), (0.7, 80), noise=noise), risk=0.1)
        assert (found is not None) is is_stopped


def test_folds_that_are_hard_for_all_are_not_held_against_a_trial() -> None:
    others = told((0.7, 100), (0.6, 50))
    level = np.array([[NAN, NAN], [NAN, NAN], [0.7 - 0.1, -100.0], [NAN, NAN]])  # as good, on the hardest fold
    assert dominator(level, others, risk=0.1) is None


def test_the_chance_is_that_of_a_difference_over_all_folds_by_the_noise_of_the_complete_trials() -> None:
    others = told((0.8, 100), (0.6, 50), (0.7, 80))
    found = dominator(ended([0.78, 0.79], 120), others, risk=0.4)
    rows = others[:, :, 0] - others[:, :, 0].mean(axis=1, keepdims=True)
    noise = ((rows - rows.mean(axis=0)) ** 2).sum() / (2 * 3)
    behind = fmean((others[0, :2, 0] - ended([0.78, 0.79], 120)[:2, 0]).tolist())
    deviation = (2 * noise * (1 / 2 - 1 / 4)) ** 0.5
    assert found == (0, pytest.approx(stats.t.cdf(-behind / deviation, df=6)))


def test_a_rule_is_wrong_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    stopped = wrong = 0
    for _ in range(2000):
        levels = np.c_[random.normal(0.7, 0.03, 5), random.normal(5.0, 0.3, 5)]
        scores = levels[:, None, :] + random.normal(0, (0.02, 0.2), (5, 5, 2))
        seen = np.where(np.arange(5)[:, None] < 2, scores[0], NAN)
        if (found := dominator(seen, scores[1:], risk=0.1)) is not None:
            stopped += 1
            wrong += not dominates(scores[1 + found[0]].mean(axis=0).tolist(), scores[0].mean(axis=0).tolist())
    assert stopped > 200
    assert wrong / stopped < 0.1


def test_among_many_looked_at_after_each_fold_few_are_stopped_that_nobody_would_have_dominated() -> None:
    random = np.random.default_rng(1)
    stopped = wrong = 0
    for _ in range(500):
        size = random.uniform(0.0, 1.0, 41)
        levels = np.c_[0.6 + 0.2 * size + random.normal(0, 0.03, 41), -2.0 * size]
        scores = levels[:, None, :] + random.normal(0, (0.02, 0.2), (41, 5, 2))
        means = scores.mean(axis=1).tolist()
        looks = (np.where(np.arange(5)[:, None] < num_ended, scores[0], NAN) for num_ended in range(1, 5))
        if any(dominator(seen, scores[1:], risk=0.1) for seen in looks):
            stopped += 1
            wrong += not any(dominates(other, means[0]) for other in means[1:])
    assert stopped > 200
    assert wrong / stopped < 0.07


def test_an_equal_trial_and_one_without_an_ended_fold_or_without_a_field_are_not_dominated() -> None:
    others = told((0.8, 100), (0.6, 50), noise=0.0)
    assert dominator(others[0], others, risk=0.1) is None
    assert dominator(np.full((4, 2), NAN), others, risk=0.1) is None
    assert dominator(ended([0.1], 100), others[:1], risk=0.1) is None
    assert dominator(ended([0.1], 100), others, risk=0.1) is not None


def test_a_thousand_trials_are_compared_in_one_go() -> None:
    random = np.random.default_rng(1)
    found = dominator(np.full((5, 2), -5.0), random.normal(size=(1000, 5, 2)), risk=0.1)
    assert found is not None and found[1] < 0.1
