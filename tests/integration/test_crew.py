"""Folds of a trial that share processes train as each does by itself, and no better or worse for what came before."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo import trial
from hpo.crew import Crew
from hpo.launchers import LaunchedJob
from hpo.trial import JobStatus, TrialResult, run_single_trial
from hpo.watch import Watch
from tests.integration.conftest import ranks_under, run_hpo
from tests.integration.test_strategies import DDP, FSDP, ONE, job, write_texts
from training import main
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Record, RunDir

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "one process": ("image_classification", ONE),
    "one process, dropout": ("text_classification", {**ONE, "model.hidden_dropout_prob": 0.5}),
    "one process, lightning, 16 bits": (
        "language_modeling",
        {**ONE, "training.engine": "lightning", "training.precision": "16-mixed"},
    ),
    "ddp, cached gradients": ("embedding", {**DDP, "gradient_cache.enabled": True, "gradient_cache.chunk_size": 4}),
    "ddp by torchrun": ("image_classification", {**DDP, "distributed.launcher": "torchrun"}),
    "fsdp, adapters, lightning": ("language_modeling", {**FSDP, "lora": {"r": 2}, "training.engine": "lightning"}),
}
OWN_TASK = """\
import os, weakref
from training.tasks.image_classification import ImageClassification

built = []

class Own(ImageClassification):
    def build_model(self, config, data):
        print("process", os.getpid(), flush=True)
        {code}
        return super().build_model(config, data)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts.csv")
    return tmp_path


@pytest.fixture
def own(place: Path) -> Callable[..., JobConfig]:
    """A job of a task that runs some code before it builds its model."""

    def make(code: str, **changes: Any) -> JobConfig:
        (place / "own.py").write_text(OWN_TASK.format(code=code))
        return job("image_classification", **{**ONE, **changes}).with_values({"task": "own:Own"})

    return make


def run_folds(config: JobConfig, trial: Path, crew: Crew | None, notices: list[str] | None = None) -> list[TrialResult]:
    return [run_fold(config, trial, crew, fold, notices) for fold in range(3)]


def run_fold(
    config: JobConfig, trial: Path, crew: Crew | None, fold: int, notices: list[str] | None = None
) -> TrialResult:
    return run_single_trial(
        config.with_values({"cross_validation.fold": fold}),
        RunDir(trial / f"fold_{fold}"),
        on_record=lambda record: False,
        on_notice=(notices if notices is not None else []).append,
        crew=crew,
    )


def story(run_dir: RunDir) -> list[Record]:
    return [replace(record, time=0.0) for record in run_dir.records()]


def process_of(result: TrialResult) -> str:
    lines = (result.run_dir.logs / "rank_0.log").read_text().splitlines()
    return next(line for line in lines if line.startswith("process "))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_is_the_same_to_the_bit_whatever_its_processes_did_before(kind: str, place: Path) -> None:
    task, changes = KINDS[kind]
    config = job(task, **changes)
    with Crew(stays=True) as crew:
        together = run_folds(config, place / "together", crew)
    alone = run_folds(config, place / "alone", None)
    assert {result.status for result in together + alone} == {JobStatus.COMPLETE}
    assert [story(result.run_dir) for result in together] == [story(result.run_dir) for result in alone]
    agents = [result.run_dir.log("agent").exists() for result in together]
    assert agents == [True, False, False], "only the first one was started"
    assert len({result.metrics["loss"] for result in together}) == 3


def test_processes_stay_for_the_folds_of_a_trial_and_not_for_another(
    own: Callable[..., JobConfig], place: Path
) -> None:
    with Crew(stays=True) as crew:
        first = run_folds(own("pass"), place / "first", crew)
        assert ranks_under(place / "first")
        second = run_fold(own("pass"), place / "second", crew, 0)
        assert not ranks_under(place / "first")
        changed = run_fold(own("pass", **{"optimizer.lr": 0.5}), place / "second", crew, 1)
    assert (first[0].run_dir.next.read_bytes(), changed.run_dir.next.read_bytes()) == (
        bytes(first[1].run_dir.path),
        b"",
    )
    assert len({process_of(result) for result in first}) == 1
    assert len({process_of(result) for result in (first[0], second, changed)}) == 3
    assert not ranks_under(place)


def test_what_folds_had_of_the_devices_is_told_once_and_by_number_of_ranks(place: Path) -> None:
    began = time.monotonic()
    with Crew(stays=True) as crew:
        assert crew.take_usage().device_s == 0
        result = run_fold(job("image_classification", **DDP), place / "trial", crew, 0)
        told, usage = time.monotonic(), crew.take_usage()
        assert usage.num_devices == 2
        assert result.duration_s <= usage.seconds <= time.monotonic() - began
        others = [
            run_fold(job("image_classification", **DDP), place / trial, crew, 1) for trial in ("trial", "another")
        ]
        usage = crew.take_usage()
        assert sum(other.duration_s for other in others) <= usage.seconds <= time.monotonic() - told
    crew.take_usage()
    assert crew.take_usage().seconds == 0, "it holds nothing any more"


def test_a_model_is_gone_when_the_next_one_is_built(own: Callable[..., JobConfig], place: Path) -> None:
    code = "alive = [each for each in built if each() is not None]; assert not alive, alive\n        "
    code += "model = super().build_model(config, data); built.append(weakref.ref(model)); return model"
    for strategy in (ONE, DDP):
        with Crew(stays=True) as crew:
            results = run_folds(own(code, **strategy), place / strategy["distributed.strategy"], crew)
        assert [result.failure for result in results] == [None] * 3
        assert not results[2].run_dir.log("agent").exists()


@pytest.mark.parametrize("strategy", ["none", "ddp"])
def test_processes_that_are_killed_while_they_wait_are_replaced(strategy: str, place: Path) -> None:
    config = job("image_classification", **(DDP if strategy == "ddp" else ONE))
    notices: list[str] = []
    with Crew(stays=True) as crew:
        run_fold(config, place / "trial", crew, 0, notices)
        for process in ranks_under(place / "trial"):
            process.kill()
        result = run_fold(config, place / "trial", crew, 1, notices)
    assert (result.status, result.world_size) == (JobStatus.COMPLETE, 2 if strategy == "ddp" else 1)
    assert (result.run_dir.log("agent").exists(), notices) == (True, [])


def test_processes_killed_at_the_moment_they_are_told_are_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write_next, said = job("image_classification", **ONE), RunDir.write_next, list[bool]()

    def write_and_kill(run_dir: RunDir, following: RunDir | None) -> bool:
        if following is None:
            return write_next(run_dir, None)
        for process in ranks_under(place / "trial"):
            process.send_signal(signal.SIGSTOP)
        said.append(write_next(run_dir, following))
        for process in ranks_under(place / "trial"):
            process.kill()
        return said[-1]

    with Crew(stays=True) as crew:
        run_fold(config, place / "trial", crew, 0)
        monkeypatch.setattr(RunDir, "write_next", write_and_kill)
        result = run_fold(config, place / "trial", crew, 1)
        assert (result.status, crew.stays, said) == (JobStatus.COMPLETE, True, [True])


def test_a_task_that_cannot_be_used_twice_gets_a_process_a_fold_and_it_is_said(
    own: Callable[..., JobConfig], place: Path
) -> None:
    config = own("assert not built, 'already registered'; built.append(1)")
    notices: list[str] = []
    with Crew(stays=True) as crew:
        results = run_folds(config, place / "trial", crew, notices)
    assert {result.status for result in results} == {JobStatus.COMPLETE}
    assert len(notices) == 2
    assert "already registered" in notices[0] and "resources.processes: per_fold" in notices[1]
    assert not crew.stays


def test_an_error_that_new_processes_make_as_well_is_the_fold_s_own(own: Callable[..., JobConfig], place: Path) -> None:
    config = own("assert config.cross_validation.fold != 1, 'not this one'")
    notices: list[str] = []
    with Crew(stays=True) as crew:
        results = run_folds(config, place / "trial", crew, notices)
    failures = [result.failure for result in results]
    assert failures[1] is not None and failures[1].kind is FailureKind.USER_CODE
    assert (failures[0], failures[2], crew.stays) == (None, None, True)
    assert [notice.partition(":")[2] for notice in notices] == [" AssertionError: not this one"]
    log = (results[1].run_dir.logs / "rank_0.log").read_text()
    assert len({line for line in log.splitlines() if line.startswith("process ")}) == 2


def test_processes_that_are_told_that_nothing_follows_leave_by_themselves(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, statuses = LaunchedJob.end, list[int | None]()

    def look_first(job: LaunchedJob, *arguments: Any) -> list[int]:
        statuses.append(job.poll())
        return end(job, *arguments)

    monkeypatch.setattr(LaunchedJob, "end", look_first)
    with Crew(stays=True) as crew:
        run_fold(job("image_classification", **DDP), place / "trial", crew, 0)
    assert statuses == [0]


def test_memory_is_given_back_also_when_the_next_job_is_known_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(main, "forget_training", lambda: calls.append(1))
    monkeypatch.setenv("HPO_JOB_ID", "this")
    run_dir = RunDir(place / "fold_0")
    for following, expected in ((RunDir(place / "fold_1"), [1]), (None, [])):
        calls.clear()
        run_dir.prepare(JobConfig(), is_last=False)
        run_dir.write_next(following)
        main._where_next(run_dir)
        assert calls == expected


def test_what_a_task_draws_does_not_depend_on_the_fold_before(own: Callable[..., JobConfig], place: Path) -> None:
    config = own("pass")
    source = Path("own.py").read_text() + (
        "    def prepare(self, config):\n"
        "        import random, numpy, torch\n"
        "        print('drawn', random.random(), numpy.random.rand(), torch.rand(1).item(), flush=True)\n"
        "        return super().prepare(config)\n"
        "import torch; torch.manual_seed(7)\n"
    )
    Path("own.py").write_text(source)
    with Crew(stays=True) as crew:
        results = [run_fold(config, place / "together", crew, fold) for fold in range(2)]
    results.append(run_fold(config, place / "alone", None, 1))
    logs = [(result.run_dir.logs / "rank_0.log").read_text().splitlines() for result in results]
    drawn = [[line for line in log if line.startswith("drawn ")] for log in logs]
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 1
    assert not results[1].run_dir.log("agent").exists()


def test_processes_that_left_before_they_were_told_are_not_blamed(own: Callable[..., JobConfig], place: Path) -> None:
    config = own("assert config.cross_validation.fold != 1, 'not this one'")
    notices: list[str] = []
    with Crew(stays=True) as crew:
        first = run_fold(config, place / "trial", crew, 0, notices)
        first.run_dir.write_next(None)  # as a rank that waited for too long
        assert run_fold(config, place / "trial", crew, 1, notices).status is JobStatus.FAILED
        assert (notices, crew.went_on) == ([], False)


def test_a_job_is_followed_where_nothing_is_heard_of_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "__init__", lambda watch, folder: setattr(watch, "descriptor", None))
    with Crew(stays=True) as crew:
        results = run_folds(job("image_classification", **ONE), place / "trial", crew)
    assert [result.status for result in results] == [JobStatus.COMPLETE] * 3
    assert not results[2].run_dir.log("agent").exists()


@pytest.mark.parametrize(("record", "expected"), [(b"", True), (b"{}\n", False), (b"\x00cut off\n", False)])
def test_what_was_killed_before_its_first_record_is_tried_again(place: Path, record: bytes, expected: bool) -> None:
    if record:
        (place / "metrics.jsonl").write_bytes(record)
    killed = Failure(kind=FailureKind.SIGNAL, message="a rank was killed")
    assert trial._may_come_from_before(killed, RunDir(place)) == expected
    assert trial._may_come_from_before(replace(killed, kind=FailureKind.DATA), RunDir(place))
    assert not trial._may_come_from_before(replace(killed, kind=FailureKind.NON_FINITE), RunDir(place))


def test_a_rank_that_nobody_tells_what_is_next_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDir(place / "fold_0")
    run_dir.prepare(JobConfig(), is_last=False)
    monkeypatch.setattr(main, "LINGER_S", 0.05)
    monkeypatch.setenv("HPO_JOB_ID", "this")
    assert main._where_next(run_dir) is None
    assert not run_dir.write_next(RunDir(place / "fold_1")), "it has left"


def test_a_rank_that_was_started_by_hand_does_not_go_on_where_a_search_went(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(place / "fold_0")
    run_dir.prepare(JobConfig(), is_last=False)
    run_dir.write_next(RunDir(place / "fold_1"))
    monkeypatch.delenv("HPO_JOB_ID", raising=False)
    assert main._where_next(run_dir) is None
    monkeypatch.setenv("HPO_JOB_ID", "this")
    following = main._where_next(run_dir)
    assert following is not None and following.path == place / "fold_1"


@pytest.mark.nightly
def test_a_search_gives_the_same_scores_either_way(workplace: Path) -> None:
    study = Path("studies/digits.yaml")
    text, found = study.read_text(), []
    in_turn = "devices_per_trial: 1, max_parallel_trials: 1, parallel_folds: off"
    for processes in ("per_trial", "per_fold"):
        study.write_text(f"{text}resources: {{processes: {processes}, {in_turn}}}\n")
        run_hpo("sweep", "--study", "digits")
        agents = len(list(Path("runs").glob("digits/trial_*/fold_*/logs/agent.log")))
        with closing(sqlite3.connect("runs/studies.db")) as database:
            found.append((agents, database.execute("select value from trial_values order by trial_id").fetchall()))
        os.rename("runs", f"runs_{processes}")
    assert found[0][1] == found[1][1] and len(found[0][1]) == 2
    assert (found[0][0], found[1][0]) == (2, 4)
