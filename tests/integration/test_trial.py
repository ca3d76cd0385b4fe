"""run_single_trial on real processes: torchrun ranks, failures with their reason, nothing left behind."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from hpo.trial import JobStatus, TrialResult, run_single_trial
from tests.integration.conftest import alive, ranks_under
from training.config import JobConfig
from training.errors import FailureKind
from training.job_processes import JOB_ID
from training.run_dir import Event, Record, RunDir

TWO_RANKS = {"distributed.strategy": "ddp", "distributed.devices": 2}


def run(config: JobConfig, folder: Path, notices: list[str] | None = None) -> TrialResult:
    heard = notices if notices is not None else []
    return run_single_trial(config, RunDir(folder), on_record=lambda record: False, on_notice=heard.append)


@pytest.mark.quick
def test_two_ranks_score_every_real_sample_once(job: JobConfig, tmp_path: Path) -> None:
    # 107 samples to score on 2 ranks: one rank has 54, the other 53.
    result = run(job.with_values(TWO_RANKS), tmp_path / "run")
    outcome = result.run_dir.load_result()
    assert outcome is not None
    assert outcome.eval_samples % 2 == 1
    correct = outcome.metrics["accuracy"] * outcome.eval_samples
    assert correct == pytest.approx(round(correct), abs=1e-9)
    assert {path.name for path in result.run_dir.logs.glob("*.log")} == {"agent.log", "rank_0.log", "rank_1.log"}


def test_what_a_fold_is_scored_on_does_not_change_its_model(job: JobConfig, tmp_path: Path) -> None:
    scored = [
        run(job.with_values({"cross_validation.score": way, "output.save_model": True}), tmp_path / way)
        for way in ("fold", "test")
    ]
    outcomes = [result.run_dir.load_result() for result in scored]
    assert [outcome and outcome.eval_samples for outcome in outcomes] == [107, 80]
    models = [(result.run_dir.model / "model.safetensors").read_bytes() for result in scored]
    assert models[0] == models[1]


def test_a_distributed_start_that_fails_falls_back_to_one_process(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    # Another backend's name, so that the failed start is not remembered for the other tests of this process.
    config = job.with_values({**TWO_RANKS, "distributed.backend": "gloo"})
    result = run(config, tmp_path / "run", notices)
    assert result.status is JobStatus.COMPLETE
    assert result.world_size == 1
    assert len(notices) == 1
    assert notices[0].startswith("the distributed start failed, falling back to one process: gloo with 2 ranks")


def test_two_machines_train_one_job(job: JobConfig, tmp_path: Path) -> None:
    """Two agents on this machine, each with one rank: what `hpo train` starts, and the command it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    config = job.with_values(
        {"distributed.strategy": "ddp", "distributed.num_nodes": 2, "distributed.rendezvous": place}
    )
    other: list[subprocess.Popen[bytes]] = []

    def start_the_other(notice: str) -> None:
        said, _, printed = notice.partition("from this folder: ")
        assert said.startswith("start this on the other machine within")
        other.append(subprocess.Popen(shlex.split(printed), stderr=subprocess.DEVNULL))

    result = run_single_trial(
        config, RunDir(tmp_path / "a run"), on_record=lambda record: False, on_notice=start_the_other
    )
    assert (result.status, result.world_size, result.failure) == (JobStatus.COMPLETE, 2, None)
    assert other[0].wait(60) == 0
    assert (result.run_dir.logs / "rank_1.log").is_file()


def test_what_a_rank_finds_is_told_once_and_kept(job: JobConfig, tmp_path: Path) -> None:
    notices: list[str] = []
    result = run(job.with_values({"training.gradient_checkpointing": True}), tmp_path / "run", notices)
    assert notices == [str(finding) for finding in result.run_dir.load_findings()]
    assert notices[0].startswith("training.gradient_checkpointing: has no effect here")


@pytest.mark.parametrize("change", [{}, TWO_RANKS], ids=["one process", "two ranks"])
def test_a_stop_is_heard_by_all_ranks_at_the_same_step(
    job: JobConfig, tmp_path: Path, change: dict[str, object]
) -> None:
    config = job.with_values({**change, "training.epochs": 500})
    run_dir = RunDir(tmp_path / "run")
    result = run_single_trial(config, run_dir, on_record=lambda record: record.event is Event.EVALUATE, on_notice=print)
    assert result.status is JobStatus.STOPPED
    assert result.paused_at is None and not run_dir.last_epoch()
    assert result.metrics["accuracy"] > 0
    assert not run_dir.model.exists()
    assert not ranks_under(tmp_path)


def test_a_job_that_is_to_pause_says_at_which_epoch_it_can_go_on(job: JobConfig, tmp_path: Path) -> None:
    result = run(job.with_values({"training.epochs": 3, "output.pause_after": 2}), tmp_path / "run")
    assert (result.status, result.paused_at) == (JobStatus.STOPPED, 2)


def test_nan_is_a_typed_failure(job: JobConfig, tmp_path: Path) -> None:
    config = job.with_values({"optimizer.name": "sgd", "optimizer.lr": 1e30, "training.max_grad_norm": None})
    failure = run(config, tmp_path / "run").failure
    assert failure is not None
    assert failure.kind is FailureKind.NON_FINITE
    assert failure.rank == 0
    assert "optimizer.lr" in failure.message


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"data.name": "missing.csv"}, FailureKind.DATA, "missing.csv"),
        ({"model.architecture": "brt"}, FailureKind.CONFIG, "no model type 'brt'"),
        ({"model.hiden_size": 3}, FailureKind.CONFIG, "did you mean 'hidden_size'"),
        ({"task": "nowhere.to.be:Found"}, FailureKind.CONFIG, "no module nowhere"),
        ({"training.global_batch_size": 4096}, FailureKind.DATA, "fewer than training.global_batch_size"),
    ],
)
def test_a_mistake_is_named_in_the_result(
    job: JobConfig, tmp_path: Path, change: dict[str, object], kind: FailureKind, says: str
) -> None:
    result = run(job.with_values(change), tmp_path / "run")
    assert result.status is JobStatus.FAILED
    assert result.failure is not None
    assert (result.failure.kind, says in result.failure.message) == (kind, True), result.failure


def test_a_batch_that_ranks_cannot_share_is_refused_before_launching(job: JobConfig, tmp_path: Path) -> None:
    result = run(job.with_values({**TWO_RANKS, "training.global_batch_size": 33}), tmp_path / "run")
    assert result.failure is not None
    assert "nearest: 32 or 34" in result.failure.message
    assert list(result.run_dir.logs.iterdir()) == []


@pytest.mark.parametrize("victim", ["agent", "rank_0", "rank_1"])
def test_kill_9_of_any_process_fails_the_job_and_leaves_none(job: JobConfig, tmp_path: Path, victim: str) -> None:
    config = job.with_values({**TWO_RANKS, "training.epochs": 5000})
    killed: list[int] = []

    def kill(record: Record) -> bool:
        if record.event is Event.EVALUATE and not killed:
            pid = find(tmp_path, victim)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return False

    result = run_single_trial(config, RunDir(tmp_path / "run"), on_record=kill, on_notice=print)
    assert killed
    assert result.status is JobStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind in {FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}
    assert not ranks_under(tmp_path)


def find(folder: Path, name: str) -> int:
    """Process id of the agent, or of a rank by its number."""
    for process in ranks_under(folder):
        last_words = process.cmdline()[-2:]
        if name == ("_".join(last_words) if last_words[0] == "rank" else "agent"):
            return process.pid
    raise AssertionError(f"no {name} in {ranks_under(folder)}")


def test_an_exception_of_the_listener_ends_the_job_first(job: JobConfig, tmp_path: Path) -> None:
    seen: list[psutil.Process] = []

    def interrupt(record: Record) -> bool:
        seen.extend(ranks_under(tmp_path))
        raise KeyboardInterrupt

    config = job.with_values({**TWO_RANKS, "training.epochs": 5000})
    with pytest.raises(KeyboardInterrupt):
        run_single_trial(config, RunDir(tmp_path / "run"), on_record=interrupt, on_notice=print)
    assert len(seen) == 3
    assert not any(process.is_running() for process in seen)


def test_an_impatient_second_ctrl_c_leaves_no_process_either(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stubborn.py").write_text(
        "import signal, subprocess\n"
        "from training.tasks.image_classification import ImageClassification\n"
        "class Stubborn(ImageClassification):\n"
        "    def build_model(self, config, data):\n"
        "        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "        subprocess.Popen(['sleep', '7655'], start_new_session=True)\n"
        "        return super().build_model(config, data)\n"
    )
    seen: list[psutil.Process] = []

    def interrupt(record: Record) -> bool:
        seen.extend(alive("sleep", "7655"))
        seen.extend(ranks_under(tmp_path))
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        raise KeyboardInterrupt

    monkeypatch.setattr("hpo.launchers.job.TERM_GRACE_S", 100.0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = job.with_values({"task": "stubborn:Stubborn", "training.epochs": 5000})
    with pytest.raises(KeyboardInterrupt):
        run_single_trial(config, RunDir(tmp_path / "run"), on_record=interrupt, on_notice=print)
    assert len(seen) == 2
    assert not alive("sleep", "7655") and not ranks_under(tmp_path)


def test_a_rank_killed_before_its_first_step_is_no_failed_start(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("killed.py").write_text(
        "import os\n"
        "from training.tasks.image_classification import ImageClassification\n"
        "class Killed(ImageClassification):\n"
        "    def build_model(self, config, data):\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    notices: list[str] = []
    result = run(job.with_values({**TWO_RANKS, "task": "killed:Killed"}), tmp_path / "run", notices)
    assert (result.status, notices) == (JobStatus.FAILED, [])
    assert result.failure is not None
    assert result.failure.kind in {FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}


def test_ranks_whose_run_directory_another_attempt_has_taken_end_and_write_nowhere(
    job: JobConfig, tmp_path: Path
) -> None:
    run_dir, taken = RunDir(tmp_path / "run"), RunDir(tmp_path / "taken")
    kept: list[Path] = []

    def take(record: Record) -> bool:
        if run_dir.saved_checkpoints() and not kept:
            run_dir.path.rename(taken.path)
            taken.prepare(job, resume=True)
            kept.extend(taken.saved_checkpoints())
        return False

    config = job.with_values({"training.epochs": 5000})
    result = run_single_trial(config, run_dir, on_record=take, on_notice=print)
    assert result.status is JobStatus.FAILED
    assert not run_dir.path.exists()
    assert taken.saved_checkpoints() == kept and not taken.result.exists() and not taken.error.exists()
    assert not ranks_under(tmp_path)


def test_ranks_see_no_database_secret(job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", "postgresql://user:canary@host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary")
    environments: list[dict[str, str]] = []

    def look(record: Record) -> bool:
        if not environments:
            environments.extend(process.environ() for process in ranks_under(tmp_path))
        return True

    config = job.with_values({"training.epochs": 5000})
    run_single_trial(config, RunDir(tmp_path / "run"), on_record=look, on_notice=print)
    assert any(JOB_ID in environment for environment in environments)
    assert not any("canary" in value for environment in environments for value in environment.values())
