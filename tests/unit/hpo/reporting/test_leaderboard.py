"""Trials best first, and a paired test over folds that allows for shared training samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import NoBestTrialError
from hpo.reporting.leaderboard import compare, rank_trials
from hpo.tally import FOLD_SCORES
from tests.unit.hpo.reporting.told import complete, stopped, study_in


def test_the_paired_test_is_that_of_nadeau_and_bengio() -> None:
    """By hand: differences 0.1 0.2 0.0 0.1 0.1 have mean 0.1 and variance 0.02 / 4 = 0.005.

    Five folds: 0.005 x (1/5 + 1/4) = 0.00225, its root 0.0474342, t = 2.10819; the tail of Student's t with 4 degrees
    of freedom beyond it is 0.0513 on each side (R: 2 * pt(-2.10819, 4) = 0.10264).
    """
    best, other = [0.9, 0.9, 0.8, 0.8, 0.7], [0.8, 0.7, 0.8, 0.7, 0.6]
    found = compare(best, other, folds=5, maximize=True)
    assert found.worse_by.mean == pytest.approx(0.1)
    assert found.p_value == pytest.approx(0.10264, abs=1e-4)
    assert compare(other, best, folds=5, maximize=False) == found


def test_folds_that_all_differ_by_the_same_are_certain() -> None:
    assert compare([0.75, 0.5], [0.5, 0.25], folds=2, maximize=True).p_value == 0.0
    assert compare([0.75, 0.5], [0.75, 0.5], folds=2, maximize=True).p_value == 1.0


@pytest.mark.parametrize(("direction", "order"), [("maximize", [1, 2, 0]), ("minimize", [0, 2, 1])])
def test_trials_stand_by_their_score_and_ties_by_their_pairs(tmp_path: Path, direction: str, order: list[int]) -> None:
    trials = [complete(0.25, 0.5), complete(0.75, 1.0), complete(0.6, 0.65)]
    found = rank_trials(study_in(tmp_path, *trials, stopped(0.9), direction=direction))
    assert [each.number for each in found] == order
    assert found[0].comparison is None
    assert found[0].is_tied
    by_number = {each.number: each for each in found}
    # Trial 2 is nearer in one fold than in the other; trials 0 and 1 differ by exactly 0.5 in both.
    assert by_number[2].is_tied
    assert not found[-1].is_tied


def test_trials_that_were_scored_on_other_samples_are_not_compared(tmp_path: Path) -> None:
    found = rank_trials(study_in(tmp_path, complete(0.75, 0.5), complete(0.7, 0.5, split_id="other")))
    assert found[1].comparison is None
    assert not found[1].is_tied


def test_folds_that_did_not_end_have_no_score(tmp_path: Path) -> None:
    half = complete(0.5, 0.5)
    half.set_user_attr(FOLD_SCORES, [0.5, None])
    [best, other] = rank_trials(study_in(tmp_path, complete(0.75, 0.75), half))
    assert other.fold_scores == [0.5]
    assert other.comparison is None


def test_a_study_without_a_completed_trial_has_no_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(NoBestTrialError):
        rank_trials(study_in(tmp_path, stopped(0.5)))
