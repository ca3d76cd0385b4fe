"""MLflow away, slow, broken or full: what is said of it, what it costs, and what is written later."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hpo.events import SweepFinished, TrialState
from hpo.masking import masked
from hpo.mlflow_runs import Model, Point, Run
from hpo.tracking import MlflowTracker
from hpo.trial import JobStatus
from tests.conftest import SmallDisk
from tests.unit.hpo.tracking.events import (
    ALONE,
    everything,
    finished,
    label,
    one_trial,
    progress,
    send,
    started,
    sweep,
    told,
    trial,
)
from tests.unit.hpo.tracking.real_mlflow import Clock, Mlflow, break_mlflow
from training.errors import Failure, FailureKind


def test_a_run_that_mlflow_made_without_being_heard_to_say_so_is_found(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create_run = MlflowClient.create_run

    def lost(*args: Any, **kwargs: Any) -> None:
        create_run(*args, **kwargs)
        raise TimeoutError("no answer")

    tracker = mlflow.tracker()
    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "create_run", lost)
        send(tracker, sweep(), trial(), started(label()))
    send(tracker, finished(label()), told(), SweepFinished())
    assert [len(mlflow.runs(kind)) for kind in ("study", "trial", "fold")] == [1, 1, 1]
    assert set(mlflow.statuses().values()) == {"FINISHED"}


def test_a_run_that_mlflow_refuses_holds_up_no_other(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep(), trial(0))
    mlflow.client.delete_run(mlflow.run("trial").info.run_id)
    broken = tracker._runs.write

    def slow(run: Run, points: Sequence[Point] = ()) -> None:
        mlflow.clock.now += 1.0  # so that a pause follows a failure
        broken(run, points)

    monkeypatch.setattr(tracker._runs, "write", slow)
    send(tracker, told(0, best_value=None))
    for number in (1, 2, 3):
        mlflow.clock.now += 60.0
        send(tracker, trial(number))
    assert mlflow.statuses() == {"bert_cv": "RUNNING", **{f"trial {number}": "RUNNING" for number in (1, 2, 3)}}


@pytest.mark.parametrize("scheme", ["http", "sqlite"])
def test_unreachable_mlflow_is_said_once_and_never_raises(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "file").touch()
    uri = {"http": "http://me:secret@127.0.0.1:9", "sqlite": f"sqlite:///{tmp_path}/file/mlflow.db"}[scheme]
    notices: list[str] = []
    tracker = MlflowTracker(uri, tmp_path, notices.append, clock=Clock())
    send(tracker, *everything(), *everything())
    assert len(notices) == 1
    assert masked(uri) in notices[0]
    assert "secret" not in notices[0]


def test_a_broken_database_prints_no_traceback(mlflow: Mlflow, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep())
    with closing(sqlite3.connect(mlflow.root / "mlflow.db")) as database:
        database.execute("ALTER TABLE metrics RENAME TO gone")
    send(tracker, *one_trial(), SweepFinished())
    assert "no such table" in mlflow.notices[0]
    assert capsys.readouterr() == ("", "")


def test_what_mlflow_missed_is_written_when_it_answers_again(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = mlflow.tracker()
    failed = finished(label(1), JobStatus.FAILED, Failure(kind=FailureKind.SIGNAL, message="killed"))
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock)
        send(tracker, sweep(), trial(), started(label(0)), progress(label(0), 1, loss=0.5), finished(label(0)))
        send(tracker, started(label(1)), failed, told(0, TrialState.FAIL, reason="fold 1 failed"))
        assert mlflow.notices != []
    send(tracker, trial(1))
    assert mlflow.statuses() == {
        "bert_cv": "RUNNING",
        "trial 0": "FAILED",
        "trial 0 fold 0": "FINISHED",
        "trial 0 fold 1": "FAILED",
        "trial 1": "RUNNING",
    }
    assert mlflow.runs("fold")[0].data.metrics == {"train/loss": 0.5}
    assert len(mlflow.notices) == 1


def test_the_end_of_a_sweep_writes_what_mlflow_missed(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = mlflow.tracker()
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock, takes_s=5.0)
        send(tracker, sweep(), *one_trial())
    send(tracker, SweepFinished())
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert len(mlflow.runs()) == 4


def test_a_full_disk_is_an_outage_like_another(small_disk: SmallDisk, empty_database: Path) -> None:
    mlflow = Mlflow(small_disk.path)
    shutil.copy(empty_database, small_disk.path / "mlflow.db")
    tracker = mlflow.tracker()
    small_disk.fill()
    send(tracker, sweep(), *one_trial())
    [notice] = mlflow.notices
    assert "does not take the results" in notice and "full" in notice and "Training goes on" in notice
    small_disk.free()
    mlflow.clock.now += 1000.0
    send(tracker, *one_trial(1), SweepFinished(interrupted=False))
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert [run.data.tags["hpo.trial"] for run in mlflow.runs("trial")] == ["0", "1"]
    assert len(mlflow.notices) == 1


def test_a_slow_outage_costs_a_tenth_of_the_time(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = break_mlflow(monkeypatch, mlflow.clock, takes_s=5.0)
    tracker, begin = mlflow.tracker(), mlflow.clock.now
    send(tracker, sweep(), trial(), started(label()))
    for step in range(1000):
        mlflow.clock.now += 0.5
        send(tracker, progress(label(), step, loss=0.5))
    spent, total = 5.0 * len(attempts), mlflow.clock.now - begin
    assert 0 < spent < 0.11 * total


def test_what_was_missed_is_not_all_tried_against_a_server_that_hangs(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = mlflow.tracker()
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock)
        send(tracker, sweep(), *(told(number) for number in range(5)))
    hanging = break_mlflow(monkeypatch, mlflow.clock, takes_s=10.0, calls=("set_terminated",))
    send(tracker, trial(5))
    assert len(hanging) == 1


@pytest.mark.parametrize("is_back_for", ["the end", "the model"])
def test_a_job_without_a_study_is_ended_even_right_after_an_outage(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, model_folder: Path, is_back_for: str
) -> None:
    tracker = mlflow.tracker()
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock, takes_s=10.0)
        send(tracker, started(ALONE), *([finished(ALONE)] if is_back_for == "the model" else []))
    if is_back_for == "the model":
        assert tracker.log_model(ALONE, Model(folder=model_folder, name="bert_cv")) != ""
    else:
        send(tracker, finished(ALONE))
    assert mlflow.run("job").info.status == "FINISHED"


def test_the_end_of_a_sweep_does_not_hang_on_a_dead_server(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep(), *(trial(number) for number in range(20)))
    attempts = break_mlflow(monkeypatch, mlflow.clock, takes_s=10.0)
    send(tracker, SweepFinished())
    assert len(attempts) == 2


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_end_of_a_sweep_goes_on_as_long_as_mlflow_takes_it_unless_it_was_interrupted(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    tracker = mlflow.tracker()
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock)
        send(tracker, sweep(), *(event for number in range(5) for event in one_trial(number)))
    write = tracker._runs.write

    def slow(run: Run, points: Sequence[Point] = ()) -> None:
        mlflow.clock.now += 10.0
        write(run, points)

    monkeypatch.setattr(tracker._runs, "write", slow)
    send(tracker, SweepFinished(interrupted=interrupted))
    assert tracker.has_unwritten is interrupted


def test_a_run_that_was_deleted_in_the_ui_costs_no_other(mlflow: Mlflow) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep(), trial(0), trial(1), started(label(0, 1)))
    mlflow.client.delete_run(mlflow.runs("trial")[0].info.run_id)
    send(tracker, told(0), progress(label(0, 1), 1, loss=0.5), finished(label(0, 1)), told(1), SweepFinished())
    assert mlflow.statuses() == {"bert_cv": "FINISHED", "trial 1": "FINISHED", "trial 1 fold 0": "FINISHED"}
    assert len(mlflow.notices) == 1
