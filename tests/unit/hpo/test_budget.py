"""What ends a search: the rules of a budget on plain numbers."""

from __future__ import annotations

from typing import Any

import pytest

from hpo.budget import Budget, Left, Scores, Spent, Told, is_improvement, trials_without_improvement
from hpo.study_config import BudgetConfig

NOTHING = {"trials": 0, "device_s": 0.0, "best_value": None, "streak": 0}


def budget(*, maximize: bool = True, total: int = 20, **limits: Any) -> Budget:
    return Budget(config=BudgetConfig.model_validate(limits), total=total, maximize=maximize)


def spent(**known: Any) -> Spent:
    return Spent(**{**NOTHING, **known})


# The limits


@pytest.mark.parametrize(
    ("limits", "just_below", "reached", "says"),
    [
        ({}, {"trials": 19}, {"trials": 20}, ""),
        ({"timeout": "90s"}, {"seconds": 89.9}, {"seconds": 90.0}, "budget.timeout of 90 s is over; the same command"),
        (
            {"device_hours": 2},
            {"device_s": 7199.9},
            {"device_s": 7236.0},
            "device_hours of 2 is spent: 2.01; trials",
        ),
        (
            {"timeout": "90s"},
            {"seconds": 30.0, "climb_s": 59.9},
            {"seconds": 30.0, "climb_s": 60.0},
            "budget.timeout of 90 s has room for those paused trials only that may still win; the same",
        ),
        (
            {"device_hours": 2},
            {"device_s": 3600.0, "climb_device_s": 3599.9},
            {"device_s": 3600.0, "climb_device_s": 3600.0},
            "device_hours of 2 has room for those paused trials only that may still win; trials",
        ),
        ({"target": 0.9}, {"best_value": 0.899}, {"best_value": 0.9}, "target of 0.9 is reached: 0.9; trials in"),
        ({"patience": 3}, {"streak": 2}, {"streak": 3}, "patience is over: 3 trials in a row brought no significant"),
        ({"deadline": "9h"}, {}, {"has_time": False}, "budget.deadline of 32400 s leaves no time for another trial"),
    ],
)
def test_each_limit_ends_the_search_when_it_is_reached_and_not_before(
    limits: dict[str, Any], just_below: dict[str, Any], reached: dict[str, Any], says: str
) -> None:
    limited = budget(**limits)
    assert limited.reason_to_end(spent(**just_below)) is None
    reason = limited.reason_to_end(spent(**reached))
    assert reason == says if says == "" else says in (reason or "")


def test_what_is_not_limited_never_ends_a_search() -> None:
    much = spent(trials=19, device_s=1e9, best_value=1e9, streak=1000, seconds=1e9)
    assert budget().reason_to_end(much) is None


@pytest.mark.parametrize(("maximize", "worse", "better"), [(True, 0.4, 0.6), (False, 0.6, 0.4)])
def test_a_target_is_reached_from_the_worse_side(maximize: bool, worse: float, better: float) -> None:
    aimed = budget(maximize=maximize, target=0.5)
    assert aimed.reason_to_end(spent(best_value=worse)) is None
    assert "is reached" in (aimed.reason_to_end(spent(best_value=better)) or "")
    assert aimed.left(spent(best_value=worse))["target"].left == pytest.approx(0.1)
    assert aimed.left(spent(best_value=better))["target"].left == 0.0


def test_what_is_left_is_told_of_each_limit_that_outlasts_a_command() -> None:
    limited = budget(total=12, timeout="1h", deadline="9h", device_hours=2, target=0.9, patience=5)
    assert limited.left(spent(trials=7, device_s=1800.0, streak=1)) == {
        "trials": Left(limit=12, spent=7, left=5),
        "device_hours": Left(limit=2, spent=0.5, left=1.5),
        "patience": Left(limit=5, spent=1, left=4),
        "target": Left(limit=0.9, spent=None, left=None),
    }
    assert budget().left(spent(trials=30))["trials"].left == 0


def test_trials_in_progress_may_exceed_device_hours_and_that_is_told() -> None:
    limited = budget(device_hours=2)
    assert limited.overrun(spent(device_s=7200.0)) == ""
    assert limited.overrun(spent(device_s=9000.0)) == (
        "2.5 device-hours were spent in all, 0.5 above budget.device_hours"
    )
    assert budget().overrun(spent(device_s=9000.0)) == ""


# An improvement


def improves(ours: Scores, theirs: Scores, *, folds: int = 5, maximize: bool = True) -> bool:
    return is_improvement(ours, theirs, folds=folds, maximize=maximize)


def test_an_improvement_is_judged_by_the_corrected_paired_t_test() -> None:
    """By hand: gains 1 2 3 4 5 (x 0.01) have mean 3 and variance 2.5; five folds: 2.5 x (1/5 + 1/4) = 1.125, its root
    1.06066, times t(4, 0.95) = 2.131847 is 2.26117: less than 3. One lower by 0.0074 each is no improvement any more.
    """
    theirs = [0.5, 0.6, 0.7, 0.8, 0.9]
    gains = [0.01, 0.02, 0.03, 0.04, 0.05]
    for lowered, is_better in ((0.0073, True), (0.0075, False)):
        ours = [score + gain - lowered for score, gain in zip(theirs, gains, strict=True)]
        assert improves(ours, theirs) is is_better
        assert improves(theirs, ours, maximize=False) is is_better
        assert not improves(theirs, ours)


def test_folds_that_one_of_the_two_did_not_run_to_its_end_are_not_compared() -> None:
    theirs = [0.5, 0.5, 0.5, None, 0.9]
    assert improves([0.6, 0.61, 0.6, 0.1, None], theirs)
    assert improves([0.6, 0.61, 0.6], theirs), "folds that never began"


def test_the_same_scores_are_no_improvement_and_a_constant_gain_is_one() -> None:
    assert not improves([0.5, 0.6], [0.5, 0.6], folds=2)
    assert improves([0.51, 0.61], [0.5, 0.6], folds=2)


def test_with_one_common_fold_the_better_one_is_an_improvement() -> None:
    assert improves([0.6], [0.5])
    assert not improves([0.5], [0.6])


# The trials without one


def streak(
    values: list[float | None], better: set[tuple[int, int]], *, maximize: bool = True, at_most: int = 99
) -> int:
    """Of trials with these values; `better` are the pairs (later, earlier) that differ by more than noise."""
    told = [Told(index, value) for index, value in enumerate(values)]
    return trials_without_improvement(told, lambda *pair: pair in better, maximize=maximize, at_most=99)


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ([], set(), 0),
        ([None, None], set(), 2),
        ([0.5], set(), 0),
        ([None, 0.5], set(), 0),
        ([0.5, 0.4, None, 0.45], set(), 3),
        ([0.5, 0.4, 0.6], {(2, 0)}, 0),
        ([0.5, 0.6, 0.4, 0.3], {(1, 0)}, 2),
        ([0.5, 0.6, 0.4, 0.3], set(), 3),  # 0.6 is better by noise alone
    ],
)
def test_the_streak_is_counted_from_the_last_significant_improvement(
    values: list[float | None], better: set[tuple[int, int]], expected: int
) -> None:
    assert streak(values, better) == expected
    negated = [None if value is None else -value for value in values]
    assert streak(negated, better, maximize=False) == expected


def test_small_steps_are_one_improvement_when_they_come_within_the_streak() -> None:
    """None of these beats the one before by more than noise, but the third beats the first."""
    values: list[float | None] = [0.50, 0.51, 0.52, 0.40, 0.40]
    assert streak(values, {(2, 0)}) == 3, "trials 2, 3, 4 do not beat 1; trials 1 to 4 beat 0"
    assert streak(values, set()) == 4


def test_a_streak_is_not_followed_further_than_asked() -> None:
    asked: list[tuple[int, int]] = []

    def never(ours: int, theirs: int) -> bool:
        asked.append((ours, theirs))
        return False

    told = [Told(index, 0.1 * index) for index in range(100)]
    assert trials_without_improvement(told, never, maximize=True, at_most=3) == 3
    assert len(asked) == 3
