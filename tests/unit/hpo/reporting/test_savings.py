"""What was spent, what stopping saved, and how often it was wrong: counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpo.reporting.savings import cost_of, false_stops, wilson
from hpo.study import IDENTITY
from hpo.tally import AUDIT, CONTINUES, DEVICE_SECONDS, FOLD_SCORES, REVIVES, SAMPLED
from tests.unit.hpo.reporting.told import complete, several, stopped, study_in
from training.run_dir import Event, Record, RunDir

SIZE = {"parameters": "minimize"}


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


def test_a_trial_that_did_not_sample_its_epochs_has_those_of_the_job(tmp_path: Path) -> None:
    study = study_in(tmp_path, complete(0.5, 0.5), stopped(0.1, **{SAMPLED: {}}))
    identity = study.user_attrs[IDENTITY]
    fixed = {key: value for key, value in identity["config"].items() if key != "training.epochs"}
    study.set_user_attr(IDENTITY, {**identity, "config": fixed, "base_epochs": 2})
    assert cost_of(study).saved_fold_epochs == 2 * 2 - 1, "and not the most that are searched"


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


def test_with_several_objectives_folds_that_did_not_end_are_counted_on_disk(tmp_path: Path) -> None:
    cut = create_trial(state=TrialState.PRUNED, user_attrs={FOLD_SCORES: [[0.1, 9.0], None], DEVICE_SECONDS: 8.0})
    (tmp_path / "trial_0001").mkdir()
    begun = RunDir.create(tmp_path / "trial_0001", "fold_1")
    begun.append(Record(event=Event.EVALUATE, epoch=1, step=1, time=0.0, values={}))
    found = cost_of(study_in(tmp_path, several((0.5, 9.0), (0.5, 9.0)), cut, further=SIZE))
    assert (found.fold_epochs, found.saved_fold_epochs, found.num_stopped) == (6 + 4, 2, 1)
    assert found.saved_device_seconds == 2.0 * 2


def test_with_several_objectives_a_stop_was_right_when_the_trial_is_ahead_in_none(tmp_path: Path) -> None:
    audit = {AUDIT: {"reason": "it lost", "to_beat": [0.5, 100.0]}}
    ends = [(0.4, 110.0), (0.5, 100.0), (0.4, 90.0), (0.6, 110.0)]
    found = false_stops(study_in(tmp_path, *[several(end, end, **audit) for end in ends], further=SIZE))
    assert found is not None
    assert (found.num_audited, found.num_false) == (4, 2)


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
