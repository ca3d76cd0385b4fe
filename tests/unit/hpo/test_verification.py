"""Whether a fold that was trained again has its recorded score, and what is said when it has not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpo.errors import HpoError, MismatchError
from hpo.events import JobLabel
from hpo.ledger import SUCCEEDS
from hpo.storage import open_storage
from hpo.study import FAILURE, FOLDER, IDENTITY
from hpo.train_best import Trained
from hpo.trial import JobStatus, TrialResult
from hpo.verification import RecordedFold, agreement, recorded_fold, require_score, verdict
from training.config import JobConfig, dump_yaml
from training.errors import Failure, FailureKind
from training.run_dir import Outcome, RunDir

OUTCOME = Outcome(
    metrics={"accuracy": 0.8, "loss": 2.0},
    stopped=False,
    epochs=2,
    steps=10,
    train_samples=160,
    eval_samples=2000,
    split_id="same",
    world_size=1,
    device="cpu",
    versions={"torch": "2.13.0"},
)


BUG = Failure(kind=FailureKind.USER_CODE, message="ValueError: no", rank=1, traceback="Traceback:\n  own.py, line 3")


@pytest.fixture
def trial(tmp_path: Path) -> RecordedFold:
    (tmp_path / "fold_0").mkdir()
    return RecordedFold(trial=3, fold=0, run_dir=RunDir(tmp_path / "fold_0"), metric="accuracy", split_id="same")


def again(trial: RecordedFold, outcome: Outcome | Failure) -> Trained:
    """The fold, trained again to this end."""
    run_dir = RunDir(trial.run_dir.path.parent / "again")
    run_dir.path.mkdir(exist_ok=True)
    if isinstance(outcome, Outcome):
        run_dir.write_result(outcome)
    failure = outcome if isinstance(outcome, Failure) else None
    result = TrialResult(
        status=JobStatus.FAILED if failure else JobStatus.COMPLETE,
        metrics={} if isinstance(outcome, Failure) else outcome.metrics,
        failure=failure,
        duration_s=1.0,
        world_size=1,
        run_dir=run_dir,
    )
    return Trained(label=JobLabel(study="demo"), config=JobConfig(), result=result)


def compare(trial: RecordedFold, recorded: Outcome, repeated: Outcome) -> str:
    return agreement(replace(trial, outcome=recorded), again(trial, repeated))


def scored(score: float, **changes: object) -> Outcome:
    return replace(OUTCOME, metrics={"accuracy": score, "loss": 2.0}, **changes)  # type: ignore[arg-type]


def test_the_same_score_is_a_match(trial: RecordedFold) -> None:
    assert compare(trial, OUTCOME, OUTCOME) == "fold 0 of trial 3 was repeated exactly: accuracy 0.8000"


def test_on_one_cpu_the_last_bit_counts(trial: RecordedFold) -> None:
    with pytest.raises(MismatchError) as caught:
        compare(trial, OUTCOME, scored(math.nextafter(0.8, 1.0)))
    text = str(caught.value)
    assert "accuracy 0.8000000000000002, recorded 0.8 in" in text
    assert "(tolerance 0)\nwhat differs: nothing\nthe record was changed or" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"torch": "2.14.0"}}, "torch 2.13.0 -> 2.14.0"),
        ({"device": "cuda:0"}, "device cpu -> cuda:0"),
        ({"world_size": 2}, "ranks 1 -> 2"),
    ],
)
def test_what_ran_otherwise_may_be_off_by_rounding_and_no_more(
    trial: RecordedFold, change: dict[str, object], said: str
) -> None:
    assert "within 0.001" in compare(trial, OUTCOME, scored(0.8009, **change))
    with pytest.raises(MismatchError, match=f"what differs: {said}\ninstall the recorded"):
        compare(trial, OUTCOME, scored(0.8011, **change))


def test_one_sample_may_fall_on_the_other_side_where_few_are_scored(trial: RecordedFold) -> None:
    few = replace(OUTCOME, eval_samples=50)
    assert "within 0.02" in compare(trial, few, scored(0.82, world_size=2, eval_samples=50))
    with pytest.raises(MismatchError):
        compare(trial, few, scored(0.84, world_size=2, eval_samples=50))


def test_the_tolerance_of_the_record_counts_where_nothing_differs(trial: RecordedFold) -> None:
    on_gpu = replace(OUTCOME, device="cuda:0", tolerance=0.01)
    assert "within 0.01" in compare(trial, on_gpu, scored(0.805, device="cuda:0"))
    with pytest.raises(MismatchError, match=r"tolerance 0\.01"):
        compare(trial, on_gpu, scored(0.82, device="cuda:0"))


def test_a_score_that_is_not_finite_is_no_match(trial: RecordedFold) -> None:
    with pytest.raises(MismatchError):
        compare(trial, OUTCOME, scored(math.nan, world_size=2))


def test_a_record_that_is_gone_is_named(trial: RecordedFold) -> None:
    with pytest.raises(HpoError, match=r"there is no accuracy in .*fold_0/result\.json; bring the record back"):
        require_score(replace(trial, outcome=replace(OUTCOME, metrics={})))


def test_a_failure_is_shown_again_with_its_traceback(trial: RecordedFold) -> None:
    found = verdict(replace(trial, failure=BUG), again(trial, BUG))
    assert (found.is_sound, found.failure) == (False, BUG)
    assert found.text == (
        "fold 0 of trial 3 failed again\nuser_code on rank 1: ValueError: no\nTraceback:\n  own.py, line 3"
    )


def test_another_failure_than_the_recorded_one_is_said_to_be_another(trial: RecordedFold) -> None:
    oom = Failure(kind=FailureKind.OOM, message="no memory")
    assert (
        "failed otherwise than recorded (oom: no memory)"
        in verdict(replace(trial, failure=oom), again(trial, BUG)).text
    )
    was_fine = verdict(replace(trial, outcome=OUTCOME), again(trial, BUG))
    assert not was_fine.is_sound and "failed, which it did not when it was recorded" in was_fine.text


def test_a_fold_that_failed_and_does_not_any_more_is_sound(trial: RecordedFold) -> None:
    found = verdict(replace(trial, failure=BUG), again(trial, OUTCOME))
    assert found.is_sound
    assert found.text == (
        "fold 0 of trial 3 did not fail this time: accuracy 0.8000; recorded is user_code on rank 1: ValueError: no"
    )


def test_a_score_that_is_no_number_is_the_failure_that_it_was(trial: RecordedFold) -> None:
    record = replace(trial, failure=Failure(kind=FailureKind.NON_FINITE, message="accuracy is nan"))
    assert "failed again\nnon_finite: accuracy is nan" in verdict(record, again(trial, scored(math.nan))).text


def test_a_metric_that_the_task_does_not_report_is_said_as_the_search_said_it(trial: RecordedFold) -> None:
    message = "the task reports no metric 'f1' (it reports: accuracy, loss); change objective.metric"
    record = replace(trial, metric="f1", failure=Failure(kind=FailureKind.CONFIG, message=message))
    assert verdict(record, again(trial, OUTCOME)).failure == record.failure


def test_another_score_is_not_sound_and_a_missing_one_cannot_be_compared(trial: RecordedFold) -> None:
    assert not verdict(replace(trial, outcome=OUTCOME), again(trial, scored(0.7))).is_sound
    found = verdict(trial, again(trial, OUTCOME))
    assert found.is_sound and "has no recorded score to compare with: accuracy 0.8000" in found.text


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Of two trials: the second goes on with the first, and has failed in fold 1."""
    study = optuna.create_study(study_name="demo", storage=open_storage(f"sqlite:///{tmp_path}/study.db"))
    study.set_user_attr(FOLDER, str(tmp_path / "demo"))
    study.set_user_attr(IDENTITY, {"objective": {"metric": "accuracy", "direction": "maximize"}})
    failure = {"kind": "user_code", "message": "ValueError: no", "rank": 1, "traceback": BUG.traceback, "fold": 1}
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={SUCCEEDS: 0, FAILURE: failure}))
    for fold in (0, 1):
        run_dir = RunDir(tmp_path / "demo" / "trial_0001" / f"fold_{fold}")
        run_dir.path.mkdir(parents=True)
        run_dir.config.write_text(dump_yaml(JobConfig().model_dump()))
    RunDir(tmp_path / "demo" / "trial_0001" / "fold_0").write_result(OUTCOME)
    return study


def test_a_record_is_found_where_a_later_trial_took_it(study: optuna.Study) -> None:
    record = recorded_fold(study, 0, 0)
    assert (record.score, record.failure, record.split_id) == (0.8, None, "same")
    assert record.run_dir.path.parent.name == "trial_0001"


def test_the_failure_of_a_trial_is_that_of_the_fold_it_happened_in(study: optuna.Study) -> None:
    assert recorded_fold(study, 1, 1).failure == BUG
    assert recorded_fold(study, 1, 0).failure is None


def test_trials_and_folds_that_are_not_recorded_are_refused_with_those_that_are(study: optuna.Study) -> None:
    with pytest.raises(HpoError, match=r"--trial 7: study 'demo' has no such trial \(there: 0 to 1\)"):
        recorded_fold(study, 7, 0)
    with pytest.raises(HpoError, match=r"--fold 5: trial 1 has no record of it in .*there are those of fold 0, 1"):
        recorded_fold(study, 1, 5)
