"""What a study has come to: counts, the best trial, and an interval that is honest about overlapping folds."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hpo import show
from hpo.errors import NoBestTrialError
from hpo.fold_statistics import fold_interval
from hpo.ledger import LedgerStorage
from hpo.reporting.summary import describe_best, describe_status
from hpo.study import DEFINITION, FAILURE, FOLDER, IDENTITY
from hpo.tally import FOLD_SCORES, INTERRUPTED

T_4, T_9 = 2.7764451051977987, 2.2621571627409915
"""Student's t with 4 and 9 degrees of freedom at 0.975, from a printed table's source (R: qt(0.975, 4))."""


def study_with(
    *trials: optuna.trial.FrozenTrial, direction: str = "maximize", storage: LedgerStorage | None = None
) -> optuna.Study:
    storage = storage or LedgerStorage("sqlite://")
    study = optuna.create_study(storage=storage, study_name="demo", direction=direction)
    study.set_user_attr(
        IDENTITY,
        {"objective": {"metric": "accuracy", "direction": direction}, "config": {"cross_validation.folds": 5}},
    )
    study.set_user_attr(FOLDER, "/runs/demo")
    for trial in trials:
        study.add_trial(trial)
    return study


def complete(*scores: float) -> optuna.trial.FrozenTrial:
    return create_trial(value=mean(scores), user_attrs={FOLD_SCORES: list(scores)})


def failed(kind: str | None = None, *, fold: int | None = None, **attrs: object) -> optuna.trial.FrozenTrial:
    failure = {FAILURE: {"kind": kind, "message": f"told at {kind}", "fold": fold}} if kind else {}
    return create_trial(state=TrialState.FAIL, user_attrs={**failure, **attrs})


# The interval


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    """By hand: scores 0.7 0.8 0.9 0.8 0.8 have mean 0.8 and variance (0.01 + 0.01) / 4 = 0.005.

    Five folds: test/train = 1/4, so the variance of the mean is 0.005 x (1/5 + 1/4) = 0.00225, its root 0.0474342,
    and the half width 2.776445 x 0.0474342 = 0.1316984.
    """
    interval = fold_interval([0.7, 0.8, 0.9, 0.8, 0.8], folds=5)
    assert interval.mean == pytest.approx(0.8)
    assert interval.high - interval.mean == pytest.approx(0.1316984, abs=1e-7)
    assert interval.mean - interval.low == pytest.approx(0.1316984, abs=1e-7)


def test_repeats_add_scores_but_no_new_training_samples() -> None:
    scores = [0.7, 0.8, 0.9, 0.8, 0.8] * 2
    interval = fold_interval(scores, folds=5)
    half = T_9 * math.sqrt(stdev(scores) ** 2 * (1 / 10 + 1 / 4))
    assert interval.high - interval.mean == pytest.approx(half)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 1000).map(lambda score: score / 1000), min_size=5, max_size=5).filter(
        lambda s: len(set(s)) > 1
    )
)
def test_the_interval_is_wider_than_one_that_takes_folds_for_independent(scores: list[float]) -> None:
    interval = fold_interval(scores, folds=5)
    naive = T_4 * stdev(scores) / math.sqrt(5)
    assert interval.high - interval.mean == pytest.approx(1.5 * naive), "sqrt(1 + 5/4) = 1.5"
    assert interval.low < interval.mean < interval.high


def test_equal_scores_have_an_interval_of_no_width() -> None:
    interval = fold_interval([0.5, 0.5, 0.5], folds=3)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_one_score_has_no_bounds() -> None:
    interval = fold_interval([0.5], folds=5)
    assert interval.mean == 0.5
    assert math.isnan(interval.low) and math.isnan(interval.high)


# The best trial


@pytest.mark.parametrize(("direction", "number"), [("maximize", 2), ("minimize", 1)])
def test_the_best_trial_is_described_with_its_interval_and_folder(direction: str, number: int) -> None:
    study = study_with(failed(), complete(0.4, 0.6), complete(0.7, 0.9), complete(0.5, 0.7), direction=direction)
    best = describe_best(study)
    assert (best.study, best.number, best.metric, best.direction) == ("demo", number, "accuracy", direction)
    assert best.fold_scores == ([0.7, 0.9] if number == 2 else [0.4, 0.6])
    assert best.interval == fold_interval(best.fold_scores, folds=5)
    assert best.folder == Path(f"/runs/demo/trial_000{number}")


@pytest.mark.parametrize("trials", [(), (failed(),), (create_trial(state=TrialState.PRUNED),)])
def test_without_a_completed_trial_there_is_no_best_one(trials: tuple[optuna.trial.FrozenTrial, ...]) -> None:
    with pytest.raises(NoBestTrialError, match="study 'demo' has no completed trial yet; see hpo status"):
        describe_best(study_with(*trials))


def test_where_trials_failed_there_is_no_best_one_but_a_reason_and_a_way_on() -> None:
    study = study_with(failed("oom"), failed("data"), failed("oom"), create_trial(state=TrialState.PRUNED))
    said = (
        "study 'demo' has no completed trial yet: 3 of 4 trials failed (2 oom, 1 data), see hpo status; failed ones"
        " count, so when that is mended: hpo sweep --study demo --trials "
    )
    for budget, total in ((20, 20), (2, 8)):
        study.set_user_attr(DEFINITION, {"study": {"budget": {"trials": budget}}})
        with pytest.raises(NoBestTrialError, match=re.escape(f"{said}{total}") + "$"):
            describe_best(study)


# The status


def test_a_trial_that_nobody_evaluates_any_more_is_not_said_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    dead = replace(LedgerStorage("sqlite://").holder, pid=2**22 + 1)
    study = study_with(storage=LedgerStorage("sqlite://", holder=dead))
    study.ask().report(0.5, 1)
    status = describe_status(study)
    why = f"process {dead.pid} is dead"
    assert (status.running, status.lost) == ([], [{"number": 0, "params": {}, "reports": 1, "folds": {}, "why": why}])
    show.status([status], as_json=False, again="--study {}".format)
    said = capsys.readouterr().out
    assert "trials  1 lost" in said and "running" not in said
    assert f"lost    trial 0, 1 epoch reported: evaluated by nobody any more, {why}\n" in said
    assert " sweep --study demo goes on with it\n" in said


def test_a_sweep_ends_by_saying_how_many_trials_failed() -> None:
    status = describe_status(study_with(complete(0.5), failed("oom", fold=1), failed("data"), failed("oom")))
    assert dict(show.failed(status, "--study demo"))["failed"] == "3 of 4 trials: 2 oom, 1 data"
    assert show.failed(describe_status(study_with(complete(0.5))), "--study demo") == ()


def test_trials_are_counted_by_state_and_interrupted_ones_apart() -> None:
    study = study_with(
        complete(0.5),
        complete(0.75),
        create_trial(state=TrialState.PRUNED),
        failed("oom"),
        failed("oom"),
        failed("data", fold=3),
        failed(**{INTERRUPTED: True}),
        failed("signal", **{INTERRUPTED: True}),
    )
    study.enqueue_trial({})
    running = study.ask()
    study.enqueue_trial({})
    running.suggest_float("x", 0.5, 0.5)
    running.report(0.1, 1)
    running.report(0.2, 2)
    status = describe_status(study)
    assert status.trials == {"RUNNING": 1, "COMPLETE": 2, "PRUNED": 1, "FAIL": 3, "WAITING": 1}
    assert status.interrupted == 2
    assert (status.best_trial, status.best_value) == (1, 0.75)
    assert status.failures == {"oom": 2, "data": 1}
    assert (status.last_failure, status.last_failed) == ("told at data", (5, 3))
    assert status.running == [{"number": 8, "params": {"x": 0.5}, "reports": 2, "folds": {}}]
    assert (status.device_hours, status.left) == (0.0, {})


def test_folds_that_run_are_named_with_their_finished_epochs(tmp_path: Path) -> None:
    study = study_with()
    study.set_user_attr(IDENTITY, {**study.user_attrs[IDENTITY], "max_epochs": 4})
    study.set_user_attr(FOLDER, str(tmp_path))
    trial = study.ask()
    for step in (1, 2, 3, 4, 9, 10):
        trial.report(0.5, step)
    for fold in range(4):
        (tmp_path / "trial_0000" / f"fold_{fold}").mkdir(parents=True)
    for fold, ended in ((0, "result.json"), (1, "error.json")):
        (tmp_path / "trial_0000" / f"fold_{fold}" / ended).touch()
    [running] = describe_status(study).running
    assert running["folds"] == {2: 2, 3: 0}


def test_an_empty_study_has_an_empty_status() -> None:
    status = describe_status(study_with())
    assert set(status.trials.values()) == {0}
    assert (status.best_trial, status.best_value, status.interrupted, status.failures) == (None, None, 0, {})
