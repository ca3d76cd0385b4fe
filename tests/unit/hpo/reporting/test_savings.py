"""What was spent, what stopping saved, and how often it was wrong: counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpo.reporting.savings import cost_of, false_stops, wilson
from hpo.tally import AUDIT, CONTINUES, DEVICE_SECONDS, REVIVES, SAMPLED
from tests.unit.hpo.reporting.told import complete, stopped, study_in


def test_a_stopped_trial_saves_what_it_did_not_train(tmp_path: Path) -> None:
    found = cost_of(study_in(tmp_path, complete(0.5, 0.5), stopped(0.1, 0.1), stopped(0.2)))
    assert found.fold_epochs == 6 + 2 + 1
    assert found.saved_fold_epochs == 4 + 5  # of two folds of three epochs each
    assert found.saved_share == 0.5
    assert found.num_stopped == 2
    assert (found.device_seconds, found.saved_device_seconds, found.false_stops) == (None, None, None)


def test_a_trial_that_was_refused_before_its_first_epoch_saved_nothing(tmp_path: Path) -> None:
    refused = create_trial(state=TrialState.PRUNED)
    found = cost_of(study_in(tmp_path, complete(0.5, 0.5), refused))
    assert (found.saved_fold_epochs, found.num_stopped) == (0, 0)


def test_the_epochs_of_a_trial_may_be_sampled(tmp_path: Path) -> None:
    short = stopped(0.1, **{SAMPLED: {"training.epochs": 1}})
    assert cost_of(study_in(tmp_path, complete(0.5, 0.5), short)).saved_fold_epochs == 1


def test_device_seconds_are_of_the_trials_that_say_them(tmp_path: Path) -> None:
    timed = complete(0.5, 0.5, **{DEVICE_SECONDS: 12.0})
    found = cost_of(study_in(tmp_path, timed, complete(0.4, 0.4), stopped(0.1, 0.1)))
    assert found.device_seconds == 12.0
    assert found.saved_device_seconds == 2.0 * 4  # 12 s for 6 epochs, and 4 were saved


def test_a_trial_that_went_on_and_what_it_went_on_with_are_one(tmp_path: Path) -> None:
    """The first is stopped again later, the second runs to its end; what it was told as is no epoch."""
    told = [complete(0.5, 0.5), stopped(0.1, 0.1), stopped(0.2)]
    told[1].intermediate_values[7] = 0.3
    again = stopped(0.1, 0.1, 0.1, 0.1, **{CONTINUES: 1, REVIVES: 1})
    found = cost_of(study_in(tmp_path, *told, again, complete(0.3, 0.3, **{CONTINUES: 2, REVIVES: 2})))
    assert found.fold_epochs == 6 + 4 + 6
    assert (found.saved_fold_epochs, found.num_stopped) == (2, 1)


def test_a_stop_was_false_when_the_trial_beats_the_best_of_that_time(tmp_path: Path) -> None:
    audited = [complete(value, value, **{AUDIT: {"reason": "it lost", "to_beat": 0.5}}) for value in (0.6, 0.4, 0.3)]
    unfinished = stopped(0.1, **{AUDIT: {"reason": "it lost", "to_beat": 0.5}})
    found = false_stops(study_in(tmp_path, complete(0.9, 0.9), unfinished, *audited))
    assert found is not None
    assert (found.num_audited, found.num_false, found.rate) == (3, 1, pytest.approx(1 / 3))
    lower = false_stops(study_in(tmp_path, *audited, direction="minimize"))
    assert lower is not None
    assert lower.num_false == 2


def test_wilson_s_interval_is_that_of_the_books() -> None:
    """R: prop.test(c(1), 10, correct=FALSE) gives 0.0179 to 0.4042, and of none in 10 0 to 0.2775."""
    assert wilson(1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_an_audited_trial_that_violates_a_constraint_was_stopped_rightly(tmp_path: Path) -> None:
    refused, beaten = (complete(0.6, 0.6, **{AUDIT: {"reason": "it lost", "to_beat": 0.5}}) for _ in range(2))
    refused.set_constraint("parameters.at_most", 1.0)
    found = false_stops(study_in(tmp_path, complete(0.9, 0.9), refused, beaten))
    assert found is not None
    assert (found.num_audited, found.num_false) == (2, 1)
