"""What tracking costs: calls of MLflow, and memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hpo.events import SweepFinished
from hpo.mlflow_runs import Run, Runs
from tests.unit.hpo.tracking.events import (
    finished,
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
from tests.unit.hpo.tracking.real_mlflow import WRITES, Mlflow, break_mlflow
from training.config import JobConfig
from training.run_dir import Record


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let MLflow work and count what is called, from now on."""
    from mlflow import MlflowClient

    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    return calls


def test_a_trial_that_is_over_when_it_is_written_takes_three_calls_a_run(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep())
    calls = count_calls(monkeypatch)
    send_at_once(tracker, *one_trial())
    assert calls == {
        "create_run": 3,
        "log_batch": 4,
        "set_terminated": 3,
    }  # and one batch for the study: the best value
    assert mlflow.run("trial").data.tags["hpo.state"] == "COMPLETE"
    assert [run.data.metrics for run in mlflow.runs("fold")] == [{"train/loss": 0.7}] * 2
    assert {run.data.tags["hpo.status"] for run in mlflow.runs("fold")} == {"complete"}


def test_what_came_since_the_last_write_is_one_batch(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = mlflow.tracker()
    send(tracker, sweep(), trial(), started(label()))
    calls = count_calls(monkeypatch)
    send_at_once(tracker, *(progress(label(), step, loss=0.5) for step in range(5)))
    assert calls == {"log_batch": 1}
    assert len(mlflow.client.get_metric_history(mlflow.run("fold").info.run_id, "train/loss")) == 5
    assert not tracker.has_unwritten


def num_kept() -> int:
    return sum(
        type(each) in (Run, JobConfig, Record) for each in gc.get_objects()
    )  # isinstance would ask torch's proxies


def test_what_is_over_and_written_is_not_kept(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Runs, run: Run, points: object = ()) -> None:
        run.id, run.written_status = "an id", run.status
        for lacking in (run.tags, run.params, run.metrics, run.files):
            lacking.clear()

    monkeypatch.setattr(Runs, "write", write)
    tracker = mlflow.tracker()
    send(tracker, sweep(), *one_trial(0), trial(1), started(label(0, 1)))
    gc.collect()
    kept = num_kept()
    for number in range(2, 2000):
        send_at_once(tracker, *one_trial(number))
    gc.collect()
    assert num_kept() == kept
    send(tracker, finished(label(0, 1)), told(1), SweepFinished())
    assert not tracker.has_unwritten


def test_memory_is_bounded_while_mlflow_is_away(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.tracking.MAX_TRIALS_KEPT", 3)
    monkeypatch.setattr("hpo.tracking.MAX_RECORDS_KEPT", 4)
    gc.collect()
    before, tracker = num_kept(), mlflow.tracker()
    with monkeypatch.context() as outage:
        break_mlflow(outage, mlflow.clock)
        send(tracker, sweep(), *(event for number in range(20) for event in one_trial(number)))
        gc.collect()
        assert num_kept() - before <= 1 + 3 * 3 + 4
    send(tracker, SweepFinished())
    assert set(mlflow.statuses()) == {"bert_cv"} | {
        name
        for number in (17, 18, 19)
        for name in (f"trial {number}", f"trial {number} fold 0", f"trial {number} fold 1")
    }
    assert set(mlflow.statuses().values()) == {"FINISHED"}
    assert ["lack the oldest" in notice for notice in mlflow.notices] == [False, True, True]
