"""What MLflow holds of a study, its trials and their folds, and of a job without a study."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from hpo.events import SweepFinished, TrialState
from hpo.trial import JobStatus
from tests.unit.hpo.tracking.events import (
    ALONE,
    CONFIG,
    finished,
    interrupted,
    label,
    one_trial,
    progress,
    send,
    send_at_once,
    started,
    sweep,
    told,
    trial,
)
from tests.unit.hpo.tracking.real_mlflow import Mlflow
from training.config import JobConfig, parse_layer
from training.errors import Failure, FailureKind
from training.run_dir import Event as RecordEvent


def test_a_study_holds_its_trials_and_a_trial_its_folds(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), *one_trial(0), *one_trial(1), SweepFinished())
    study, (first, second) = mlflow.run("study"), mlflow.runs("trial")
    parents = [run.data.tags["mlflow.parentRunId"] for run in mlflow.runs("fold")]
    assert mlflow.client.get_experiment(study.info.experiment_id).name == "bert_cv"
    assert {first.data.tags["mlflow.parentRunId"], second.data.tags["mlflow.parentRunId"]} == {study.info.run_id}
    assert sorted(parents) == sorted([first.info.run_id, second.info.run_id] * 2)
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert mlflow.notices == []


def test_a_trial_says_what_was_tried_and_how_it_scored(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), *one_trial(), SweepFinished())
    run = mlflow.run("trial")
    assert run.data.params == {"optimizer.lr": "1e-05", "optimizer.name": "sgd"}
    assert run.data.tags["hpo.state"] == "COMPLETE"
    assert run.data.metrics["accuracy"] == 0.75
    scores = mlflow.client.get_metric_history(run.info.run_id, "fold_accuracy")
    assert [(score.step, score.value) for score in scores] == [(0, 0.5), (1, 1.0)]
    assert parse_layer(mlflow.artifact(run, "config.yaml"), name="config.yaml").values == CONFIG.model_dump()
    assert mlflow.run("study").data.metrics == {"best_accuracy": 0.75}
    assert "metric: accuracy" in mlflow.artifact(mlflow.run("study"), "study.yaml")


def test_a_trial_of_several_objectives_has_the_mean_and_the_folds_of_each_and_the_study_its_front(
    mlflow: Mlflow,
) -> None:
    several = replace(sweep(), metric=("accuracy", "loss"), direction=("maximize", "minimize"))
    scores = {"value": (0.75, 0.25), "fold_scores": ((0.5, 0.5), (1.0, 0.0)), "best_value": None, "front": (0,)}
    send(mlflow.tracker(), several, *one_trial()[:-1], told(**scores), SweepFinished())
    metrics = mlflow.run("trial").data.metrics
    assert metrics == {"accuracy": 0.75, "loss": 0.25, "fold_accuracy": 1.0, "fold_loss": 0.0}
    assert mlflow.run("study").data.metrics == {"front_size": 1.0}
    assert mlflow.run("study").data.tags["hpo.metric"] == "accuracy loss"


def test_a_fold_keeps_the_step_and_time_of_every_record(mlflow: Mlflow) -> None:
    tracker, job = mlflow.tracker(), label()
    records = [progress(job, step, loss=1 / step, lr=0.1) for step in (1, 2, 3)]
    start = progress(job, 0, RecordEvent.START, world_size=2.0)
    score = progress(job, 3, RecordEvent.EVALUATE, accuracy=0.5)
    send(tracker, sweep(), trial(), started(job), start, *records, score, finished(job))
    run = mlflow.run("fold")
    history = mlflow.client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.timestamp) for each in history] == [(1, 101500), (2, 102500), (3, 103500)]
    assert run.data.metrics == {"train/loss": 1 / 3, "train/lr": 0.1, "eval/accuracy": 0.5}
    assert run.data.params["optimizer.betas"] == "[0.9, 0.999]"
    assert (run.data.tags["hpo.run_dir"], run.data.tags["hpo.world_size"]) == ("/runs/fold", "2")
    assert "optimizer:" in mlflow.artifact(run, "config.yaml")


def test_a_run_lasts_as_long_as_what_it_shows_and_not_as_its_writing(mlflow: Mlflow) -> None:
    tracker = mlflow.tracker()
    for at, event in enumerate([sweep(), trial(), started(label()), finished(label()), told(), SweepFinished()]):
        tracker.hear(event, 1000.0 + at)
    tracker.write()
    times = {run.info.run_name: (run.info.start_time, run.info.end_time) for run in mlflow.runs()}
    assert times == {
        "bert_cv": (1000000, 1005000),
        "trial 0": (1001000, 1004000),
        "trial 0 fold 0": (1002000, 1003000),
    }


@pytest.mark.parametrize("how", [send, send_at_once])
def test_trials_and_folds_side_by_side_are_not_confused(mlflow: Mlflow, how: Callable[..., None]) -> None:
    numbers, jobs = (2, 0, 1), [label(fold, number) for fold in (1, 0) for number in (2, 0, 1)]
    how(
        mlflow.tracker(),
        sweep(),
        *(trial(number) for number in numbers),
        *(started(job, f"/runs/{job}") for job in jobs),
        *(progress(job, step, loss=10 * job.trial + job.fold) for step in (1, 2) for job in jobs),  # type: ignore[operator]
        *(finished(job) for job in reversed(jobs)),
        *(told(number, value=number / 10) for number in (1, 2, 0)),
        SweepFinished(),
    )
    trials = {run.info.run_id: run.info.run_name for run in mlflow.runs("trial")}
    assert sorted(trials.values()) == ["trial 0", "trial 1", "trial 2"]
    assert [
        run.data.metrics["accuracy"] for run in sorted(mlflow.runs("trial"), key=lambda run: run.info.run_name)
    ] == [
        0.0,
        0.1,
        0.2,
    ]
    folds = {run.info.run_name: run for run in mlflow.runs("fold")}
    assert sorted(folds) == [f"trial {number} fold {fold}" for number in range(3) for fold in range(2)]
    for name, run in folds.items():
        number, fold = int(name.split()[1]), int(name.split()[3])
        assert trials[run.data.tags["mlflow.parentRunId"]] == f"trial {number}"
        assert run.data.metrics == {"train/loss": 10 * number + fold}
        assert run.data.tags["hpo.run_dir"] == f"/runs/{name}"
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert mlflow.notices == []


@pytest.mark.parametrize(
    ("state", "status"),
    [(TrialState.COMPLETE, "FINISHED"), (TrialState.PRUNED, "FINISHED"), (TrialState.FAIL, "FAILED")],
)
def test_a_trial_ends_as_it_was_told(mlflow: Mlflow, state: TrialState, status: str) -> None:
    send(mlflow.tracker(), sweep(), trial(), told(state=state))
    assert (mlflow.run("trial").info.status, mlflow.run("trial").data.tags["hpo.state"]) == (status, state)


def test_a_failed_job_says_why_and_a_stopped_one_is_finished(mlflow: Mlflow) -> None:
    failure = Failure(kind=FailureKind.OOM, message="out of memory " + "x" * 9000)
    failed, stopped = finished(label(0), JobStatus.FAILED, failure), finished(label(1), JobStatus.STOPPED)
    send(mlflow.tracker(), sweep(), trial(), started(label(0)), failed, started(label(1)), stopped)
    first, second = mlflow.runs("fold")
    assert (first.info.status, first.data.tags["hpo.failure_kind"]) == ("FAILED", "oom")
    assert first.data.tags["hpo.failure_message"].startswith("out of memory xxx")
    assert (second.info.status, second.data.tags["hpo.status"]) == ("FINISHED", "stopped")
    assert mlflow.notices == []


def test_values_that_are_not_finite_are_kept(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), trial(), started(label()), progress(label(), 1, loss=math.nan, lr=math.inf))
    send(tracker := mlflow.tracker(), sweep(), told(value=math.nan, fold_scores=(math.nan, -math.inf)))
    send(tracker, SweepFinished())
    assert math.isnan(mlflow.run("fold").data.metrics["train/loss"])
    assert math.isnan(mlflow.run("trial").data.metrics["accuracy"])
    assert mlflow.notices == []


def test_what_mlflow_would_refuse_is_made_to_fit(mlflow: Mlflow, capsys: pytest.CaptureFixture[str]) -> None:
    model = {f"layer@{number}": "x" * 7000 for number in range(120)}
    config = JobConfig.model_validate({"model": model})
    job = label()
    send(
        mlflow.tracker(),
        sweep(),
        trial(),
        started(job, config=config),
        progress(job, 1, RecordEvent.TRAIN, **{"recall@5": 0.5}),
    )
    run = mlflow.run("fold")
    assert capsys.readouterr().err == ""
    assert len(run.data.params) > 120
    assert len(run.data.params["model.layer_7"]) == 6000
    assert run.data.metrics == {"train/recall_5": 0.5}
    assert mlflow.notices == []


@pytest.mark.parametrize("name", ["train", 'it\'s "both" quotes', "two\nlines", "100% 'a' = \\"])
def test_a_job_without_a_study_is_a_new_run_for_each_run_directory(mlflow: Mlflow, name: str) -> None:
    tracker = mlflow.tracker()
    send(tracker, started(ALONE, f"/runs/{name}"), progress(ALONE, 1, loss=0.5), finished(ALONE))
    send(mlflow.tracker(), started(ALONE, f"/runs/{name}"), finished(ALONE))
    send(tracker, started(ALONE, f"/runs/{name}-2"), interrupted(ALONE))
    assert [run.data.tags["hpo.run_dir"] for run in mlflow.runs("job")] == [
        f"/runs/{name}",
        f"/runs/{name}-2",
    ]
    assert [run.info.status for run in mlflow.runs("job")] == ["FINISHED", "KILLED"]
    assert all("mlflow.parentRunId" not in run.data.tags for run in mlflow.runs())
    assert mlflow.notices == []


def test_artifacts_lie_under_the_root(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), *one_trial(), SweepFinished())
    assert len(list((mlflow.root / "mlartifacts").rglob("config.yaml"))) == 3
