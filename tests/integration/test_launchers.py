"""What every launcher must do alike, and what the fork server does on top. Real processes throughout."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from hpo.cancellation import Cancellation, JobCancelled
from hpo.crew import Crew
from hpo.launchers import FORK_SERVER
from hpo.trial import JobStatus, TrialResult, run_single_trial
from tests.integration.conftest import alive, ranks_under
from training.config import JobConfig
from training.errors import FailureKind
from training.run_dir import Event, Record, RunDir

LAUNCHERS = ["fork_server", "torchrun"]
RANKS = {"one process": {}, "two ranks": {"distributed.strategy": "ddp", "distributed.devices": 2}}
OWN_TASK = """\
import os, signal, subprocess, sys, threading
from training.tasks.image_classification import ImageClassification

class Own(ImageClassification):
    def build_model(self, config, data):
        {code}
        return super().build_model(config, data)
"""


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=RANKS)
def ranks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wish(job: JobConfig, launcher: str, ranks: str) -> JobConfig:
    """The job, by each launcher, as one process and as two ranks."""
    return job.with_values({**RANKS[ranks], "distributed.launcher": launcher})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a name that breaks careless quoting."""
    path = tmp_path / "a 'hard' \"name\"\n$(touch x)"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def run(config: JobConfig, folder: Path, on_record: Callable[[Record], bool] = lambda record: False) -> TrialResult:
    notices: list[str] = []
    result = run_single_trial(config, RunDir(folder / "run"), on_record=on_record, on_notice=notices.append)
    assert notices == [], "another launcher was used, or something else was changed"
    return result


def own(config: JobConfig, code: str) -> JobConfig:
    """`config` with a task in the working directory that executes `code` in each rank before the model is built."""
    Path("own_task.py").write_text(OWN_TASK.format(code=code))
    return config.with_values({"task": "own_task:Own"})


# Every launcher


def test_a_result_comes_back_and_nothing_stays(wish: JobConfig, folder: Path, ranks: str) -> None:
    result = run(wish, folder)
    assert (result.status, result.world_size) == (JobStatus.COMPLETE, 1 if ranks == "one process" else 2)
    assert not ranks_under(folder)
    assert not list(folder.glob("x"))


@pytest.mark.parametrize("ranks", RANKS)
def test_launchers_give_the_same_metrics_to_the_bit(job: JobConfig, tmp_path: Path, ranks: str) -> None:
    config = job.with_values(RANKS[ranks])
    jobs = [config.with_values({"distributed.launcher": name}) for name in LAUNCHERS]
    first, second = (run(job, tmp_path / name).run_dir for job, name in zip(jobs, LAUNCHERS, strict=True))
    assert first.load_result() == second.load_result()
    assert [record.values for record in first.records()] == [record.values for record in second.records()]
    assert (first.model / "model.safetensors").read_bytes() == (second.model / "model.safetensors").read_bytes()


def test_an_error_comes_back_with_its_traceback(wish: JobConfig, folder: Path) -> None:
    failure = run(own(wish, "raise LookupError('not here')"), folder).failure
    assert failure is not None
    assert (failure.kind, failure.message) == (FailureKind.USER_CODE, "LookupError: not here")
    assert "own_task.py" in failure.traceback


def test_a_stop_ends_all_ranks_with_a_result(wish: JobConfig, folder: Path) -> None:
    config = wish.with_values({"training.epochs": 5000})
    result = run(config, folder, lambda record: record.event is Event.EVALUATE)
    assert result.status is JobStatus.STOPPED
    assert not ranks_under(folder)


def test_ranks_that_ignore_the_polite_signal_are_killed_with_their_children(
    wish: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.launchers.job.TERM_GRACE_S", 0.5)
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN); subprocess.Popen(['sleep', '7656'], start_new_session=True)"
    seen: list[psutil.Process] = []

    def interrupt(record: Record) -> bool:
        seen.extend(ranks_under(folder))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(own(wish, code).with_values({"training.epochs": 5000}), folder, interrupt)
    assert seen
    assert not ranks_under(folder) and not alive("sleep", "7656")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGSEGV])
def test_a_rank_ended_by_a_signal_is_a_typed_failure(wish: JobConfig, folder: Path, number: int) -> None:
    result = run(own(wish, f"os.environ.get('RANK', '1') == '1' and os.kill(os.getpid(), {int(number)})"), folder)
    assert result.status is JobStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind in {FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}
    assert not ranks_under(folder)


def test_a_rank_that_was_killed_is_noticed_though_what_it_forked_lives_on(by_fork: JobConfig, folder: Path) -> None:
    """torchelastic would wait for the process that holds the other end of the rank's pipe."""
    code = "os.environ['RANK'] == '0' and (os.fork() == 0 and signal.pause(), os.kill(os.getpid(), 9))"
    result = run(own(by_fork.with_values(RANKS["two ranks"]), code), folder)
    assert result.failure is not None and result.failure.kind is FailureKind.SIGNAL
    assert not ranks_under(folder)


def test_a_rank_that_is_told_to_leave_has_its_whole_job_leave(wish: JobConfig, folder: Path) -> None:
    config = own(wish, "os.environ.get('RANK', '1') == '1' and os.kill(os.getpid(), signal.SIGTERM)")
    result = run(config.with_values({"training.epochs": 5000}), folder)
    assert result.failure is not None and result.failure.kind is FailureKind.PREEMPTION
    assert not ranks_under(folder)


@pytest.mark.parametrize("after_s", [0, 2])
def test_ranks_that_leave_by_themselves_are_a_failure(wish: JobConfig, folder: Path, after_s: int) -> None:
    result = run(own(wish, f"__import__('time').sleep({after_s}); os._exit(0)"), folder)
    assert result.status is JobStatus.FAILED
    assert not ranks_under(folder)


def test_ranks_live_in_the_environment_and_folder_of_the_launch(
    wish: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: str
) -> None:
    monkeypatch.setenv("HPO_CANARY", "a 'quoted'\nvalue = 1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("RANK", "7")
    code = "import json; open('seen', 'w').write(json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]))"
    run(own(wish.with_values({"distributed.threads_per_rank": 1}), code), folder)
    seen_folder, environment, _ = json.loads(Path("seen").read_text())
    assert seen_folder == str(folder)
    assert environment["HPO_CANARY"] == "a 'quoted'\nvalue = 1"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HPO_JOB_ID"].startswith(str(folder / "run"))
    assert "MLFLOW_TRACKING_PASSWORD" not in environment
    assert environment.get("RANK") in ({None} if ranks == "one process" else {"0", "1"})


def test_what_ranks_print_is_in_their_logs(wish: JobConfig, folder: Path, ranks: str) -> None:
    code = "print('of python'); sys.stderr.write('of stderr\\n'); subprocess.run(['echo', 'of a child'])"
    logs = run(own(wish, code), folder).run_dir.logs
    for rank in range(1 if ranks == "one process" else 2):
        text = (logs / f"rank_{rank}.log").read_text()
        assert all(said in text for said in ("of python", "of stderr", "of a child"))


def test_ranks_compute_with_the_threads_of_their_placement(wish: JobConfig, folder: Path) -> None:
    code = "import torch; print('threads', torch.get_num_threads())"
    result = run(own(wish.with_values({"distributed.threads_per_rank": 3}), code), folder)
    assert "threads 3" in (result.run_dir.logs / "rank_0.log").read_text()


# The fork server


@pytest.fixture
def by_fork(job: JobConfig) -> JobConfig:
    return job.with_values({"distributed.launcher": "fork_server"})


def server() -> psutil.Process:
    assert FORK_SERVER.pid is not None
    return psutil.Process(FORK_SERVER.pid)


def test_jobs_share_a_server_and_nothing_else(by_fork: JobConfig, folder: Path) -> None:
    """A leak of one job into the process (a module, a variable, a seed, a thread) is not there in the next."""
    code = (
        "print('clean', not hasattr(os, 'leak') and 'HPO_LEAK' not in os.environ, threading.active_count());"
        "os.leak = bytearray(10**7); os.environ['HPO_LEAK'] = '1'; threading.Thread(target=__import__('time').sleep,"
        " args=(60,), daemon=True).start(); import random; random.seed(1)"
    )
    config = own(by_fork, code)
    pids = set()
    losses = set()
    for _ in range(3):
        result = run(config, folder)
        losses.add(result.metrics["loss"])
        pids.add(FORK_SERVER.pid)
        assert "clean True 1" in (result.run_dir.logs / "rank_0.log").read_text()
    assert (len(pids), len(losses)) == (1, 1)


def test_a_server_has_jobs_of_one_rank_and_of_several_in_any_order(by_fork: JobConfig, folder: Path) -> None:
    """A job of one rank does a backward in its agent, which may have no ranks after that; agents of later jobs may."""
    kinds = ["one process", "one process", "two ranks", "two ranks", "one process", "two ranks", "one process"]
    results = [run(by_fork.with_values(RANKS[kind]), folder) for kind in kinds]
    assert {result.status for result in results} == {JobStatus.COMPLETE}
    assert len({str(result.metrics) for result in results if result.world_size == 1}) == 1
    assert len({str(result.metrics) for result in results if result.world_size == 2}) == 1


def test_what_is_set_for_mlflow_is_no_reason_for_another_server(
    by_fork: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(by_fork, folder)
    before = FORK_SERVER.pid
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    run(by_fork, folder)
    assert FORK_SERVER.pid == before
    monkeypatch.setenv("HPO_CANARY", "another")
    run(by_fork, folder)
    assert FORK_SERVER.pid != before


@pytest.mark.parametrize("ranks", RANKS)
def test_a_job_goes_on_without_its_server_and_the_next_gets_another(
    by_fork: JobConfig, folder: Path, ranks: str
) -> None:
    before: list[int] = []

    def kill(record: Record) -> bool:
        if not before:
            before.append(server().pid)
            server().kill()
        return False

    config = by_fork.with_values(RANKS[ranks])
    assert run(config, folder, kill).status is JobStatus.COMPLETE
    assert run(config, folder).status is JobStatus.COMPLETE
    assert FORK_SERVER.pid not in before


def test_changed_code_is_what_the_next_job_runs(by_fork: JobConfig, folder: Path) -> None:
    """A copy of the package, so that this test can change it."""
    checkout = Path(__file__).parents[2]
    for package in ("training", "hpo"):
        subprocess.run(["cp", "-r", str(checkout / package), str(folder / package)], check=True)
    config = by_fork.with_values({"output.root": str(folder / "runs")})
    (folder / "job.json").write_text(config.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from hpo.trial import run_single_trial\n"
        "from training.config import JobConfig; from training.run_dir import RunDir\n"
        "job = JobConfig.model_validate_json(Path('job.json').read_text())\n"
        "for number in range(2):\n"
        "    run = RunDir(Path(f'run_{number}'))\n"
        "    run_single_trial(job, run, on_record=lambda record: False, on_notice=print)\n"
        "    print('greets', 'hello' in run.log('rank_0').read_text())\n"
        "    source = Path('training/job.py'); old = '    set_arithmetic(context.device)\\n'\n"
        "    source.write_text(source.read_text().replace(old, old + '    print(\"hello\")\\n', 1))\n"
        "    changed = source.stat().st_mtime + 5; __import__('os').utime(source, (changed, changed))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["greets False", "greets True"], done.stderr


@pytest.mark.parametrize("ends_by", ["a cancellation", "patience"])
def test_a_server_that_hangs_in_an_import_is_not_waited_for_for_ever(
    by_fork: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    Path("sitecustomize.py").write_text(
        "import sys, time\nif 'training.fork_server' in sys.orig_argv:\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    notices: list[str] = []
    cancellation = Cancellation()
    if ends_by == "patience":
        monkeypatch.setattr("hpo.launchers.fork_server.ANSWER_S", 1.0)
        result = run_single_trial(
            by_fork, RunDir(folder / "run"), on_record=lambda record: False, on_notice=notices.append
        )
        assert result.status is JobStatus.COMPLETE
        assert "by torchrun" in notices[0] and "has not answered for 1 s" in notices[0]
        return
    threading.Timer(1.0, cancellation.request).start()
    with pytest.raises(JobCancelled):
        run_single_trial(
            by_fork,
            RunDir(folder / "run"),
            on_record=lambda record: False,
            on_notice=notices.append,
            crew=Crew(cancellation),
        )
    assert (FORK_SERVER.pid, notices) == (None, [])


def test_where_forking_is_unsafe_jobs_start_by_torchrun_and_it_is_said(
    by_fork: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'training.fork_server' in sys.orig_argv:\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    notices: list[str] = []
    result = run_single_trial(by_fork, RunDir(folder / "run"), on_record=lambda record: False, on_notice=notices.append)
    assert result.status is JobStatus.COMPLETE
    assert len(notices) == 1
    assert "by torchrun" in notices[0] and "started threads" in notices[0]


def test_kill_9_of_the_orchestrator_ends_server_agent_and_ranks(by_fork: JobConfig, folder: Path) -> None:
    config = by_fork.with_values({**RANKS["two ranks"], "training.epochs": 5000})
    (folder / "job.json").write_text(config.model_dump_json())
    script = (
        "import os; from pathlib import Path; from hpo.trial import run_single_trial; from hpo.launchers import"
        " FORK_SERVER; from training.config import JobConfig; from training.run_dir import Event, RunDir\n"
        "job = JobConfig.model_validate_json(Path('job.json').read_text())\n"
        "def tell(record):\n"
        "    if record.event is Event.EVALUATE: print(FORK_SERVER.pid, flush=True)\n"
        "run_single_trial(job, RunDir(Path('run')), on_record=tell, on_notice=print)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as orchestrator:
        assert orchestrator.stdout is not None
        doomed = [psutil.Process(int(orchestrator.stdout.readline())), *ranks_under(folder)]
        orchestrator.kill()
    assert len(doomed) == 4  # the server, the agent, two ranks
    assert not psutil.wait_procs(doomed, timeout=5)[1]


def test_kill_9_of_the_orchestrator_ends_what_ranks_started_in_sessions_of_their_own(
    wish: JobConfig, folder: Path
) -> None:
    config = own(wish, "subprocess.Popen(['sleep', '7657'], start_new_session=True)")
    (folder / "job.json").write_text(config.with_values({"training.epochs": 5000}).model_dump_json())
    with subprocess.Popen([sys.executable, "-m", "hpo", "train", "--config", "job.json"]) as orchestrator:
        while not (sleepers := alive("sleep", "7657")) and orchestrator.poll() is None:
            time.sleep(0.05)
        orchestrator.kill()
    assert sleepers
    assert not psutil.wait_procs(sleepers, timeout=5)[1]
    deadline = time.monotonic() + 5
    while alive("sleep", "7657") and time.monotonic() < deadline:  # of the other rank
        time.sleep(0.05)
    assert not alive("sleep", "7657")


def test_the_store_of_a_job_listens_on_the_loopback_interface_only(by_fork: JobConfig, folder: Path) -> None:
    config = by_fork.with_values({**RANKS["two ranks"], "training.epochs": 5000})
    listening: set[str] = set()

    def look(record: Record) -> bool:
        if record.event is Event.EVALUATE:
            for process in ranks_under(folder):
                with contextlib.suppress(psutil.NoSuchProcess):  # it leaves, as it was asked to
                    found = process.net_connections("inet")
                    listening.update(each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN)
        return record.event is Event.EVALUATE

    run(config, folder, look)
    assert "127.0.0.1" in listening
    assert not listening & {"0.0.0.0", "::"}


def test_many_jobs_at_once_leave_no_process(by_fork: JobConfig, folder: Path) -> None:
    before = psutil.Process().children()  # such as what a killed orchestrator, of another test, left to this process

    def one(number: int) -> TrialResult:
        config = by_fork.with_values(RANKS["two ranks" if number % 2 else "one process"])
        config = config.with_values({"distributed.share_devices": True})
        return run(config, folder / str(number))

    with ThreadPoolExecutor(4) as slots:
        results = list(slots.map(one, range(12)))
    assert {result.status for result in results} == {JobStatus.COMPLETE}
    assert not ranks_under(folder)
    FORK_SERVER.close()  # and with it an agent that was not needed
    after = [child for child in psutil.Process().children() if child not in before]
    assert not [child for child in after if child.status() == psutil.STATUS_ZOMBIE]
