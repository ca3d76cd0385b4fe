"""Runs that were cut short: how they end, and how they go on when their study is continued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpo.events import Event, SweepFinished, TrialState
from tests.unit.hpo.tracking.events import (
    CONFIG,
    finished,
    interrupted,
    label,
    one_trial,
    send,
    send_at_once,
    started,
    sweep,
    told,
    told_if_running,
    trial,
)
from tests.unit.hpo.tracking.real_mlflow import Mlflow


def test_continuing_a_study_makes_no_second_run(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), *one_trial(0), SweepFinished())
    tracker = mlflow.tracker()
    send(tracker, sweep())
    assert mlflow.run("study").info.status == "RUNNING"
    send(tracker, sweep(), *one_trial(0), *one_trial(0), *one_trial(1), SweepFinished())
    assert [len(mlflow.runs(kind)) for kind in ("study", "trial", "fold")] == [1, 2, 4]
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert mlflow.notices == []


def test_a_new_study_of_the_same_name_gets_runs_of_its_own(mlflow: Mlflow) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep("u1"), *one_trial(), SweepFinished(), sweep("u2"), *one_trial(), SweepFinished())
    assert [len(mlflow.runs(kind)) for kind in ("study", "trial", "fold")] == [2, 2, 4]
    send(tracker, sweep("u3"), told(0, TrialState.FAIL, reason="not a valid configuration"))
    assert mlflow.runs("trial")[-1].data.params == {}
    assert len({run.info.experiment_id for run in mlflow.runs()}) == 1


def test_interrupted_sweep_leaves_no_running_run(mlflow: Mlflow) -> None:
    stopped = told(state=TrialState.FAIL, value=None, fold_scores=(), best_value=None, reason="interrupted")
    start: list[Event] = [sweep(), trial(), started(label())]
    send(mlflow.tracker(), *start, interrupted(label()), stopped, SweepFinished(interrupted=True))
    assert mlflow.statuses() == {"bert_cv": "KILLED", "trial 0": "FAILED", "trial 0 fold 0": "KILLED"}
    assert mlflow.run("trial").data.tags["hpo.reason"] == "interrupted"


def test_the_end_of_a_sweep_ends_what_nobody_ended(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), trial(), started(label()), SweepFinished())
    assert mlflow.statuses() == {"bert_cv": "FINISHED", "trial 0": "KILLED", "trial 0 fold 0": "KILLED"}


def test_folds_of_a_killed_process_end_with_their_trial(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), trial(0), started(label(1)))  # and then kill -9
    lost = told(0, TrialState.FAIL, value=None, fold_scores=(), best_value=None, reason="worker lost")
    send(mlflow.tracker(), sweep(), lost)
    assert mlflow.statuses() == {"bert_cv": "RUNNING", "trial 0": "FAILED", "trial 0 fold 1": "KILLED"}


def test_a_trial_that_mlflow_has_as_over_is_whole(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    create_run = MlflowClient.create_run

    def no_fold(*args: Any, **kwargs: Any) -> Any:
        if kwargs["tags"]["hpo.kind"] == "fold":
            raise ConnectionError("the server is gone")
        return create_run(*args, **kwargs)

    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "create_run", no_fold)
        send_at_once(mlflow.tracker(), sweep(), *one_trial(), SweepFinished())
    assert mlflow.statuses() == {"bert_cv": "FINISHED", "trial 0": "RUNNING"}
    past = replace(sweep(), told_again=told_if_running(*one_trial()))
    send_at_once(mlflow.tracker(), past, SweepFinished())
    assert [len(mlflow.runs(kind)) for kind in ("study", "trial", "fold")] == [1, 1, 2]
    assert set(mlflow.statuses().values()) == {"FINISHED"}


def test_folds_that_mlflow_did_not_see_end_do_so_when_their_trial_is_told_again(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), trial(), started(label(0)), finished(label(0)), started(label(1)))  # then away
    past = replace(sweep(), told_again=told_if_running(trial(), told(state=TrialState.PRUNED)))
    send(mlflow.tracker(), past, SweepFinished())
    ended = {"bert_cv": "FINISHED", "trial 0": "FINISHED", "trial 0 fold 0": "FINISHED", "trial 0 fold 1": "KILLED"}
    assert mlflow.statuses() == ended


def test_a_past_longer_than_what_is_kept_is_written_in_between(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.tracking.MAX_TRIALS_KEPT", 3)
    past = [event for number in range(7) for event in (trial(number), told(number))]
    send(mlflow.tracker(), replace(sweep(), told_again=told_if_running(*past)), SweepFinished())
    assert (len(mlflow.runs("trial")), mlflow.notices) == (7, [])


def test_a_changed_parameter_does_not_spoil_a_continued_fold(mlflow: Mlflow) -> None:
    first, slower = (CONFIG.with_values({"distributed.timeout_s": s, "model.top@k": s}) for s in (600, 900))
    send(mlflow.tracker(), sweep(), trial(), started(label(), config=first))
    send(mlflow.tracker(), sweep(), trial(), started(label(), "/runs/fold-2", slower), finished(label()))
    run = mlflow.run("fold")
    assert run.data.params["distributed.timeout_s"] == "600"
    assert "timeout_s: 900" in mlflow.artifact(run, "config.yaml")
    assert (run.data.tags["hpo.run_dir"], run.info.status) == ("/runs/fold-2", "FINISHED")
    assert mlflow.notices == []


def test_a_fold_that_is_run_again_is_running_again(mlflow: Mlflow) -> None:
    tracker, again = mlflow.tracker(), started(label(), "/runs/fold-2")
    send(tracker, sweep(), trial(), started(label()), interrupted(label()), again)
    assert (mlflow.run("fold").info.status, mlflow.run("fold").data.tags["hpo.run_dir"]) == ("RUNNING", "/runs/fold-2")
