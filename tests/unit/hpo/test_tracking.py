"""What MLflow holds after a sweep, a job, a crash or an outage. MLflow is real, on SQLite."""

from __future__ import annotations

import gc
import math
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo.background import Background
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    Notice,
    SweepFinished,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from hpo.masking import masked
from hpo.mlflow_runs import Model, Point, Run, Runs
from hpo.tracking import MlflowTracker, NoTracker, connect
from hpo.trial import JobStatus, TrialResult
from tests.conftest import SmallDisk
from training.config import JobConfig, parse_layer
from training.errors import Failure, FailureKind
from training.run_dir import Event as RecordEvent
from training.run_dir import Record, RunDir

REPOSITORY = Path(__file__).parents[3]
CONFIG = JobConfig()
ALONE = JobLabel(study="bert_cv")


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mlflow:
    """One MLflow on SQLite, looked at through a client of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri, self.notices = root, f"sqlite:///{root}/mlflow.db", list[str]()
        self.clock = Clock()

    def tracker(self) -> MlflowTracker:
        """A tracker as a new process would make it."""
        artifacts = self.root / "mlartifacts"
        return MlflowTracker(self.uri, artifacts, self.notices.append, clock=self.clock)

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, kind: str | None = None) -> list[Any]:
        """All runs of `kind`, oldest first."""
        client = self.client
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        found = [run for run in found if kind in (None, run.data.tags["hpo.kind"])]
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_name))

    def run(self, kind: str) -> Any:
        """The only run of `kind`."""
        (run,) = self.runs(kind)
        return run

    def artifact(self, run: Any, name: str) -> str:
        path: str = self.client.download_artifacts(run.info.run_id, name)
        return Path(path).read_text()

    def statuses(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.runs()}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: they take most of a second to make, a copy takes none."""
    root = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings(action="ignore"):
        Mlflow(root).client.search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def mlflow(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    root = tmp_path / "it's a run's folder"
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield Mlflow(root)
    assert list((tmp_path / "cwd").iterdir()) == [], "something was written to the working directory"


def sweep(uid: str = "u1") -> SweepStarted:
    return SweepStarted(
        study="bert_cv",
        study_uid=uid,
        metric="accuracy",
        direction="maximize",
        num_splits=2,
        finished_trials=0,
        total_trials=3,
        best_value=None,
        definition={"objective": {"metric": "accuracy"}},
    )


def trial(number: int = 0) -> TrialStarted:
    return TrialStarted(number=number, params={"optimizer.lr": 1e-5, "optimizer.name": "sgd"}, config=CONFIG)


def told(number: int = 0, state: TrialState = TrialState.COMPLETE, **changes: Any) -> TrialFinished:
    values: dict[str, Any] = {"value": 0.75, "fold_scores": (0.5, 1.0), "best_value": 0.75} | changes
    return TrialFinished(number=number, state=state, **values)


def label(fold: int = 0, number: int = 0) -> JobLabel:
    return JobLabel(study="bert_cv", trial=number, fold=fold)


def started(job: JobLabel, path: str = "/runs/fold", config: JobConfig = CONFIG) -> JobStarted:
    return JobStarted(label=job, config=config, run_dir=RunDir(Path(path)))


def progress(job: JobLabel, step: int, event: RecordEvent = RecordEvent.TRAIN, **values: float) -> JobProgress:
    return JobProgress(label=job, record=Record(event=event, step=step, epoch=0, time=100.5 + step, values=values))


def finished(job: JobLabel, status: JobStatus = JobStatus.COMPLETE, failure: Failure | None = None) -> JobFinished:
    result = TrialResult(
        status=status,
        metrics={},
        failure=failure,
        duration_s=1.0,
        world_size=2,
        run_dir=RunDir(Path("/runs/fold")),
    )
    return JobFinished(label=job, result=result)


def interrupted(job: JobLabel) -> JobFinished:
    return JobFinished(label=job, result=None)


def one_trial(number: int = 0) -> list[Event]:
    """A trial of two folds, from its start to its end."""
    folds = [label(fold, number) for fold in (0, 1)]
    jobs: list[Event] = []
    for job in folds:
        jobs += [started(job), progress(job, 10, loss=0.7), finished(job)]
    return [trial(number), *jobs, told(number)]


def send(tracker: MlflowTracker, *events: Event) -> None:
    """Each event is written before the next one comes."""
    for event in events:
        tracker.hear(event, time.time())
        tracker.write()


def send_at_once(tracker: MlflowTracker, *events: Event) -> None:
    """The events come faster than they are written."""
    for event in events:
        tracker.hear(event, time.time())
    tracker.write()


def told_if_running(*events: Event) -> Callable[[Mapping[int, str]], list[tuple[Event, float]]]:
    """The past of a study of one trial, as hpo.past tells it."""
    return lambda known: [(event, time.time()) for event in events] if known.get(0, "RUNNING") == "RUNNING" else []


WRITES = ("get_experiment_by_name", "search_runs", "create_run", "log_batch", "log_text", "set_terminated")


def break_mlflow(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *, takes_s: float = 0.0, calls: tuple[str, ...] = WRITES
) -> list[str]:
    """Let these calls fail, each after `takes_s`, until the monkeypatch is undone. Returns the growing list of them."""
    from mlflow import MlflowClient

    attempts: list[str] = []

    def fail(name: str) -> Callable[..., None]:
        def broken(*args: Any, **kwargs: Any) -> None:
            attempts.append(name)
            clock.now += takes_s
            raise ConnectionError("the database is down")

        return broken

    for name in calls:
        monkeypatch.setattr(MlflowClient, name, fail(name))
    return attempts


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


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_is_registered_with_its_run_after_the_job_finished(mlflow: Mlflow, model_folder: Path) -> None:
    tracker, metrics = mlflow.tracker(), {"accuracy": 0.9, "loss": math.nan}
    send(tracker, started(ALONE), finished(ALONE))
    params, tags = {"optimizer.lr": "0.1"}, {"hpo.select": "best"}
    model = Model(folder=model_folder, name="bert.cv", metrics=metrics, params=params, tags=tags)
    uris = [tracker.log_model(ALONE, model) for _ in range(2)]
    assert uris == ["models:/bert.cv/1", "models:/bert.cv/2"]
    client, run = mlflow.client, mlflow.run("job")
    assert run.info.status == "FINISHED"
    models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
    assert {(model.status, model.source_run_id) for model in models} == {("READY", run.info.run_id)}
    assert models[0].params == {"optimizer.lr": "0.1"}
    assert [model.tags["hpo.select"] for model in models] == ["best"] * 2
    assert run.data.tags["hpo.select"] == "best"
    assert [(metric.key, metric.value) for metric in models[0].metrics] == [("accuracy", 0.9)]
    assert {model.tags["mlflow.modelVersions"] for model in models} == {
        f'[{{"name": "bert.cv", "version": {number}}}]' for number in (1, 2)
    }
    versions = [client.get_model_version("bert.cv", number) for number in ("1", "2")]
    assert [version.tags for version in versions] == [{"hpo.select": "best"}] * 2
    assert {version.run_id for version in versions} == {run.info.run_id}
    assert {version.source for version in versions} == {model.artifact_location for model in models}
    files = {file.path for file in client.list_logged_model_artifacts(models[0].model_id)}
    assert files == {"model.safetensors", "config.json"}
    assert mlflow.notices == []


def test_a_model_that_cannot_be_registered_is_said_and_does_not_raise(mlflow: Mlflow, tmp_path: Path) -> None:
    tracker, empty, missing = mlflow.tracker(), tmp_path / "empty", tmp_path / "missing"
    empty.mkdir()
    send(tracker, started(ALONE), finished(ALONE))
    for folder in (empty, missing):
        assert tracker.log_model(ALONE, Model(folder=folder, name="bert_cv")) == ""
    assert [str(folder) in notice for folder, notice in zip((empty, missing), mlflow.notices, strict=True)]
    assert mlflow.client.search_registered_models() == []


def test_a_model_that_was_not_uploaded_is_not_ready(
    mlflow: Mlflow, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    tracker = mlflow.tracker()
    send(tracker, started(ALONE))
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    assert tracker.log_model(ALONE, Model(folder=model_folder, name="bert_cv")) == ""
    (model,) = mlflow.client.search_logged_models([mlflow.run("job").info.experiment_id])
    assert (model.status, "disk full" in mlflow.notices[0]) == ("FAILED", True)


def everything() -> list[Event]:
    return [sweep(), Notice(message="hello"), *one_trial(), SweepFinished(interrupted=True)]


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


def test_no_credentials_in_a_notice(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri, notices = "postgresql://me:p%40ss/w@ord@db/mlflow?sslpassword=hidden", list[str]()
    tracker = MlflowTracker(uri, tmp_path, notices.append)

    def fail(uri: str) -> None:
        raise OSError(f"cannot reach {uri}: password p@ss/w@ord of p%40ss/w@ord refused")

    monkeypatch.setattr("hpo.mlflow_runs._open_client", fail)
    send(tracker, *everything())
    assert notices[0].count("***") > 3
    assert not any(secret in notices[0] + tracker.where for secret in ("ss/w", "ord@", "hidden", "me:"))


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


def test_artifacts_lie_under_the_root(mlflow: Mlflow) -> None:
    send(mlflow.tracker(), sweep(), *one_trial(), SweepFinished())
    assert len(list((mlflow.root / "mlartifacts").rglob("config.yaml"))) == 3


def test_mlflow_is_imported_by_its_own_thread_and_prints_nothing(tmp_path: Path) -> None:
    script = """
        import logging, sys
        from pathlib import Path
        from hpo.events import SweepFinished
        from hpo.tracking import connect
        from tests.unit.hpo.test_tracking import everything

        assert not {"mlflow", "torch"} & sys.modules.keys()
        tracker = connect(None, Path(sys.argv[1]), print)
        for event in everything():
            tracker(event)
        import mlflow
        from mlflow.telemetry.utils import is_telemetry_disabled
        assert is_telemetry_disabled()
        logging.getLogger("mlflow").info("chatter")
        assert mlflow.active_run() is None and not mlflow.is_tracking_uri_set()
    """
    root = tmp_path / "100%25 of a?b" / "runs"
    environment = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(root)]
    result = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(path.name for path in root.glob("[!.]*")) == ["mlartifacts", "mlflow.db"]


def test_off_tracks_nothing_with_the_same_surface(tmp_path: Path) -> None:
    tracker = connect("off", tmp_path / "runs", print)
    assert isinstance(tracker, NoTracker)
    for event in everything():
        tracker(event)
    assert tracker.log_model(ALONE, Model(folder=tmp_path, name="m")) == ""
    assert not (tmp_path / "runs").exists()
    surface = {name for name in dir(Background) if not name.startswith("_")}
    assert {name for name in dir(NoTracker) if not name.startswith("_")} == surface


def test_the_uri_comes_from_the_argument_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@tracking:5000")
    assert connect("https://other", tmp_path, print).where == "https://other"
    assert connect(None, tmp_path, print).where == "http://***@tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert connect(None, tmp_path, print).where == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
        ("API request to https://me:a/b@c@host/x failed", "API request to https://***@host/x failed"),
        (
            "postgresql+psycopg://host/db?user=me&password=x y",
            "postgresql+psycopg://host/db?user=me&password=*** y",
        ),
        ("https://TOKEN@host", "https://***@host"),
    ],
)
def test_urls_are_shown_without_credentials(text: str, shown: str) -> None:
    assert masked(text) == shown
