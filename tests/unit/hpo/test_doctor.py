"""What ``hpo doctor`` finds where something is really broken, and finds no more after --fix."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy

from hpo import device_locks
from hpo.definition import StudyDefinition
from hpo.doctor import environment, storage
from hpo.doctor.environment import clock_finding, cuda_findings, environment_findings, probe_torch, torch_findings
from hpo.doctor.examination import Section, examine, patient
from hpo.doctor.filesystem import kind_of, network_kind
from hpo.doctor.finding import Finding, Level, attempted, mended
from hpo.doctor.storage import opened, storage_findings
from hpo.doctor.study import study_findings
from hpo.doctor.text import num_problems, print_findings
from hpo.errors import StorageError, StudyNotFoundError
from hpo.fold_ledger import FoldRow, FoldState
from hpo.ledger import LedgerStorage
from hpo.mlflow_runs import Run, Runs
from hpo.storage import open_storage
from hpo.study import FOLDER, OWNER, UID, open_study
from hpo.study_config import StudyConfig
from hpo.tally import SAMPLED
from training.atomic_files import write_atomically
from training.config import JobConfig, Layer

CHECKOUT = Path(__file__).parents[3]
DYING = str(Path(__file__).with_name("dying.py"))
PROBE: dict[str, Any] = {
    "version": "2.13.0+cu128",
    "cuda": "12.8",
    "sees": 2,
    "kernels": ["sm_80", "sm_90", "compute_90"],
    "nccl": "2.27.5",
    "gloo": True,
}
"""What torch says on a sound machine with two GPUs."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with everything that is written below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_LEASES", str(tmp_path / "leases"))
    for variable in ("HPO_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def database(storage_url: str) -> Iterator[LedgerStorage]:
    """A fresh database, once for each kind."""
    yield from opened_at(storage_url)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[LedgerStorage]:
    """One kind of database, for what does not depend on it, where a command looks for it."""
    yield from opened_at(f"sqlite:///{tmp_path}/runs/studies.db")


def opened_at(url: str) -> Iterator[LedgerStorage]:
    database = open_storage(url)
    yield database
    database.remove_session()
    database.engine.dispose()


def new_study(database: LedgerStorage, name: str = "demo") -> optuna.Study:
    """As a sweep makes one."""
    values = {
        "study": name,
        "objective": {"metric": "accuracy", "direction": "maximize"},
        "search_space": {"optimizer.lr": {"float": [1e-4, 1e-1], "log": True}},
    }
    config, job = StudyConfig.model_validate(values), JobConfig()
    definition = StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer())
    return open_study(definition, database)


def finish(study: optuna.Study, x: float) -> optuna.Trial:
    """A complete trial of this process."""
    trial = study.ask()
    trial.set_user_attr(SAMPLED, {"x": x})
    (Path(study.user_attrs[FOLDER]) / f"trial_{trial.number:04d}").mkdir()
    study.tell(trial, x)
    return trial


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process that has printed its first line, and the line; killed at the end."""
    inherited = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=inherited) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def kill_a_sweep(study: optuna.Study, asked: int, told: int = 0) -> None:
    """One that had asked for trials and told some of them; the processes of each are left behind."""
    url = study._storage._backend.url  # type: ignore[attr-defined]
    with started(DYING, url, study.study_name, str(asked), str(told)) as (_, line):
        assert line == "ready\n"


def worst(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """Those that are not well."""
    return [finding for finding in findings if finding.level is not Level.OK]


def fixed(findings: Iterator[Finding]) -> list[str]:
    """What was done about those that have a repair."""
    return [each.text for each in map(mended, findings) if each.level is Level.FIXED]


def look(study: optuna.Study, mlflow: str = "off") -> Iterator[Finding]:
    return study_findings(study, mlflow)


# One study


def test_trials_of_a_killed_sweep_are_queued_again_and_its_processes_killed(
    database: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    study = new_study(database)
    kill_a_sweep(study, asked=2, told=1)
    lost, over, running = worst(look(study))
    assert (lost.check, over.check, running.check) == ("trials", "processes", "processes")
    assert "trial 1 RUNNING, but evaluated by nobody: process" in lost.text and "is dead" in lost.text
    assert "of trial 0, which nobody evaluates" in over.text
    assert "of trial 1, which nobody evaluates" in running.text
    assert len(no_leftover_processes()) == 2, "looking changes nothing"
    assert fixed(look(study)) == [
        "trial 1 queued again; a sweep goes on with them",
        "the processes of trial 0 were killed",
    ]
    assert worst(look(study)) == []
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "WAITING"]
    assert not no_leftover_processes()


def test_a_trial_that_runs_and_its_processes_are_left_alone(
    sqlite: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    study = new_study(sqlite)
    with started(DYING, sqlite.url, "demo", "2", "1") as (_, line):
        assert line == "ready\n"
        found = list(look(study))
        assert worst(iter(found)) == [], "also not those of a trial that was told this moment"
        assert [each.text for each in found[:2]] == ["1 running, by processes that live", "2 of trials that run"]
        assert fixed(look(study)) == []
        assert len(no_leftover_processes()) == 2
        for each in no_leftover_processes():
            each.kill()


def test_a_running_trial_that_something_else_asked_for_is_told_as_such(sqlite: LedgerStorage) -> None:
    new_study(sqlite)
    other = optuna.storages.RDBStorage(sqlite.url)
    optuna.load_study(study_name="demo", storage=other).ask()
    other.remove_session()
    other.engine.dispose()
    [found] = worst(look(optuna.load_study(study_name="demo", storage=sqlite)))
    assert found.level is Level.NOTE
    assert found.text == "trial 0 RUNNING without a known process; taken for lost in 180 s"


def test_runs_in_mlflow_of_what_is_over_are_told_how_it_ended(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    dead = asdict(replace(sqlite.holder, pid=2**22 + 1))
    for number in range(3):
        study.ask().set_user_attr(OWNER, asdict(sqlite.holder) if number == 2 else dead)
        (Path("runs/demo") / f"trial_{number:04d}").mkdir()
    study.tell(0, 0.75)
    uri, uid = f"sqlite:///{Path('runs/mlflow.db').absolute()}", study.user_attrs[UID]
    runs = Runs(uri, Path("runs/mlartifacts"))
    of_study = Run(experiment="demo", name="demo", identity={"hpo.kind": "study", "hpo.study_uid": uid}, started=1.0)
    runs.write(of_study)
    for number, kind in enumerate(("trial", "fold", "trial")):
        tags = {"hpo.kind": kind, "hpo.study_uid": uid, "hpo.trial": str(number - (kind == "fold"))}
        runs.write(Run(experiment="demo", name=f"{kind} {number}", identity=tags, started=1.0, parent=of_study))
    [found] = worst(look(study, uri))
    assert found.level is Level.PROBLEM
    assert found.text == "2 runs RUNNING of what is over: fold 1, trial 0"
    assert fixed(look(study, uri)) == ["2 runs ended, 0 of them as KILLED"]
    assert worst(look(study, uri)) == []
    assert statuses(runs) == {"demo": "RUNNING", "trial 0": "FINISHED", "fold 1": "KILLED", "trial 2": "RUNNING"}
    told = runs.client.search_runs([runs.client.get_experiment_by_name("demo").experiment_id], "tags.`hpo.trial` = '0'")
    assert {"accuracy": 0.75} in [run.data.metrics for run in told]
    optuna.Trial(study, study.trials[2]._trial_id).set_user_attr(OWNER, dead)
    for number in (1, 2):
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    assert fixed(look(study, uri)) == ["2 runs ended, 0 of them as KILLED"], "the study's, too: nobody sweeps it"
    assert statuses(runs) == {"demo": "KILLED", "fold 1": "KILLED"} | {
        name: state for name, state in statuses(runs).items() if name.startswith("trial")
    }
    assert "RUNNING" not in statuses(runs).values()


def statuses(runs: Runs) -> dict[str, str]:
    found = runs.client.search_runs([runs.client.get_experiment_by_name("demo").experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def test_an_mlflow_that_does_not_answer_is_a_problem_and_one_that_is_not_there_a_note(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    [gone] = worst(look(study, f"sqlite:///{Path('nothing.db').absolute()}"))
    assert (gone.level, gone.check) == (Level.NOTE, "mlflow")
    assert not Path("nothing.db").exists()
    [away] = worst(look(study, "postgresql+psycopg://user:s3cret@127.0.0.1:1/mlflow"))
    assert (away.level, away.check) == (Level.PROBLEM, "mlflow")
    assert "does not answer" in away.text and "s3cret" not in away.text


def test_folders_without_a_trial_can_be_moved_aside_by_the_command_that_is_told(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    Path("runs/demo/trial_0007/fold_0").mkdir(parents=True)
    [found] = worst(look(study))
    assert "1 run folder of no trial of the study" in found.text and "trial_0007" in found.text
    assert found.fix is not None and found.repair is None, "never by itself"
    subprocess.run(found.fix, shell=True, check=True)
    assert worst(look(study)) == []
    assert Path("runs/demo/aside/trial_0007/fold_0").is_dir()


def test_a_study_whose_folder_is_gone(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    (Path("runs/demo/trial_0000")).rmdir()
    Path("runs/demo").rmdir()
    assert [(each.check, each.level) for each in worst(look(study))] == [("folders", Level.PROBLEM)]


def test_what_killed_processes_half_wrote_is_removed_and_what_is_being_written_stays(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    fold = Path("runs/demo/trial_0000/fold_0")
    (fold / ".predictions.x.tmp").mkdir(parents=True)
    names = (".result.json.a.tmp", ".predictions.x.tmp/labels.npy", ".fresh.b.tmp", "metrics.jsonl")
    for name in names:
        (fold / name).write_text("half")
    for path in fold.rglob("*"):
        if path.name != ".fresh.b.tmp":
            os.utime(path, (1.0, 1.0))
    [found] = worst(look(study))
    assert (found.level, found.check) == (Level.NOTE, "temporary files")
    assert fixed(look(study)) == ["2 half-written files removed"]
    assert worst(look(study)) == []
    assert sorted(path.name for path in fold.iterdir()) == [".fresh.b.tmp", "metrics.jsonl"]


def test_the_temporary_files_of_an_atomic_write_are_those_that_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo.doctor.study import _half_written

    monkeypatch.setattr(os, "replace", lambda *names: found.extend(_half_written(tmp_path)))
    found: list[Path] = []
    write_atomically(tmp_path / "result.json", b"{}")
    assert len(found) == 1


def test_trials_with_the_same_hyperparameters_are_noted_unless_one_goes_on_with_the_other(
    sqlite: LedgerStorage,
) -> None:
    study = new_study(sqlite)
    for x in (0.1, 0.2, 0.1):
        finish(study, x)
    [found] = worst(look(study))
    assert found.level is Level.NOTE
    assert found.text.startswith("1 trial had the hyperparameters of an earlier one (trials 0, 2)")
    study = new_study(sqlite, "other")
    finish(study, 0.1)
    again = study.ask()
    again.set_user_attr("hpo:continues", 0)
    again.set_user_attr(SAMPLED, {"x": 0.1})
    study.tell(again, 0.1)
    assert worst(look(study)) == []


# The database


def test_leases_of_a_deleted_study_are_dropped(database: LedgerStorage, folder: Path) -> None:
    study = new_study(database)
    row = FoldRow(fold=0, state=FoldState.RUNNING, attempt=1, trained_by=0, run_dir="x")
    assert database.write_fold(study.ask()._trial_id, row)
    new_study(database, "other").ask()
    optuna.delete_study(study_name="demo", storage=database)
    [found] = worst(storage_findings(database, [], folder / "none"))
    assert (found.level, found.check, found.text[:26]) == (Level.NOTE, "leases", "1 lease of no running tria")
    assert fixed(storage_findings(database, [], folder / "none")) == ["2 rows dropped"]
    assert worst(storage_findings(database, [], folder / "none")) == []
    assert [each.number for each in database.held(database.get_study_id_from_name("other"))] == [0]


def test_a_lock_that_nobody_lets_go_of_is_found(
    database: LedgerStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_study(database)
    monkeypatch.setattr(storage, "LOCK_WAIT_S", 0.2)
    blocker = sqlalchemy.create_engine(database.url)
    with blocker.connect() as connection:
        if database.engine.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            found = worst(opened(database.url, "")[1])
        else:
            connection.exec_driver_sql("SELECT study_id FROM studies FOR UPDATE")
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            found = worst(storage_findings(database, [], folder / "none"))
            assert f"pg_terminate_backend({pid})" in str(found[0].fix)
    assert [(each.check, each.level) for each in found] == [("lock", Level.PROBLEM)]
    assert "for 0.2 s" in found[0].text
    blocker.dispose()
    again, findings = opened(database.url, "")
    assert again is not None
    assert worst([*findings, *storage_findings(again, [], folder / "none")]) == []
    again.engine.dispose()


def test_a_damaged_database_is_found_and_not_opened(folder: Path) -> None:
    path = folder / "studies.db"
    for database in opened_at(f"sqlite:///{path}"):
        study = optuna.create_study(storage=database)
        for _ in range(30):
            study.tell(study.ask(), 0.5)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(3, pages, 3):
            file.seek(4096 * page)
            file.write(os.urandom(4096))
    before = path.read_bytes()
    database, found = opened(f"sqlite:///{path}", "")
    assert database is None
    [damage] = worst(found)
    assert (damage.check, damage.level) == ("integrity", Level.PROBLEM)
    assert ".recover" in str(damage.fix)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_a_problem(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(b"this is no database, but long enough to be mistaken for one. " * 100)
    database, found = opened(f"sqlite:///{folder}/notes.txt", "")
    assert database is None
    assert [(each.check, each.level) for each in found] == [("integrity", Level.PROBLEM)]


def test_tables_of_another_optuna_come_with_the_command_that_upgrades_them(folder: Path) -> None:
    for database in opened_at(f"sqlite:///{folder}/studies.db"):
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    _, found = opened(f"sqlite:///{folder}/studies.db", "")
    [old] = worst(found)
    assert (old.check, old.level) == ("database", Level.PROBLEM)
    assert str(old.fix).endswith(f"optuna storage upgrade --storage sqlite:///{folder}/studies.db")


def test_a_server_that_is_away_is_a_problem_without_its_password() -> None:
    database, found = opened("postgresql+psycopg://user:s3cret@127.0.0.1:1/db", "")
    assert database is None
    [away] = found
    assert away.level is Level.PROBLEM
    assert away.fix == "pg_isready -h 127.0.0.1 -p 1"
    assert "s3cret" not in away.text


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "user:s3cret@host/db"])
def test_a_url_that_is_none_is_a_wrong_request(url: str) -> None:
    with pytest.raises(StorageError, match="--storage"):
        opened(url, "")


def test_a_database_that_is_not_there_is_a_note_and_is_not_made(folder: Path) -> None:
    database, [found] = opened(f"sqlite:///{folder}/nothing/studies.db", "hpo sweep --study demo")
    assert (database, found.level, found.fix) == (None, Level.NOTE, "hpo sweep --study demo")
    assert not (folder / "nothing").exists()


def test_folders_of_trials_that_no_study_has_are_noted(sqlite: LedgerStorage, folder: Path) -> None:
    new_study(sqlite)
    for name in ("demo", "deleted"):
        (folder / "runs" / name / "trial_0000").mkdir(parents=True)
    (folder / "runs" / "cache").mkdir()
    [found] = worst(storage_findings(sqlite, [folder / "runs" / "demo"], folder / "runs"))
    assert (found.level, found.check) == (Level.NOTE, "folders")
    assert str(found.fix) == f"rm -r {folder}/runs/deleted"


# This machine


def test_a_file_system_is_that_of_the_longest_mount_point() -> None:
    mounts = (
        "rootfs / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/sda /home/me/my\\040disk xfs rw 0 0\n"
        "//server/share /mnt cifs rw 0 0\n"
        "drive /content/drive fuse.drive rw 0 0\n"
        "tmp /mnt tmpfs rw 0 0\n"
    )
    paths = ("/data", "/home/me/runs", "/home/me/my disk/runs", "/home/me/my diskette", "/mnt/x", "/content/drive/x")
    assert [kind_of(Path(path), mounts) for path in paths] == ["ext4", "nfs4", "xfs", "nfs4", "tmpfs", "fuse.drive"]


def test_a_network_file_system_is_a_problem_for_sqlite(
    sqlite: LedgerStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = folder / "mounts"
    mounts.write_text(f"rootfs / ext4 rw 0 0\nserver:/x {folder}/runs nfs rw 0 0\n")
    monkeypatch.setattr("hpo.doctor.filesystem.MOUNTS", mounts)
    assert (network_kind(folder), network_kind(folder / "runs" / "not there yet")) == (None, "nfs")
    database, found = opened(sqlite.url, "")
    assert [(each.check, each.level) for each in worst(found)] == [("file system", Level.PROBLEM)]
    assert database is not None
    database.engine.dispose()


def test_a_device_that_a_dead_process_has_locked_is_found_with_who_holds_on_to_it() -> None:
    path = device_locks.lock_path(device_locks.lock_folder(), "core-3")
    program = (
        "import fcntl, os, subprocess, sys, time; from pathlib import Path; from hpo import device_locks\n"
        "lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); device_locks.sign(Path(sys.argv[1]))\n"
        "heir = subprocess.Popen(['sleep', '600'], pass_fds=[lock], stdout=subprocess.DEVNULL)\n"
        "print(heir.pid, flush=True); time.sleep(600)"
    )
    with started("-c", program, str(path)) as (process, line):
        heir = int(line)
        [alive] = environment._devices()
        assert alive.level is Level.OK and alive.text.startswith(f"1 leased, by pid {process.pid} (-c ")
        process.kill()
        process.wait()
        [found] = worst(environment._devices())
        assert found.level is Level.PROBLEM
        assert f"core-3 is still locked for pid {process.pid}" in found.text
        assert found.fix == f"kill {heir}"
        subprocess.run(str(found.fix), shell=True, check=True)
    deadline = time.monotonic() + 5
    while worst(environment._devices()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert worst(environment._devices()) == []


def test_a_device_that_a_process_of_another_container_has_locked_is_in_use() -> None:
    path = device_locks.lock_path(device_locks.lock_folder(), "core-3")
    program = (
        "import fcntl, os, sys, time; lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); os.write(lock, b'pid 4194305 (hpo sweep)'); print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    with contained("-c", program, str(path)):
        [found] = environment._devices()
        assert (found.level, found.text[:32]) == (Level.OK, "core-3 is leased by pid 4194305 ")


@contextlib.contextmanager
def contained(*arguments: str) -> Iterator[None]:
    """A Python process in which process ids are other ones."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.skip("this user may not make a namespace of processes")
            yield
        finally:
            process.kill()


def test_a_folder_of_leases_that_others_can_write_to_is_a_problem(folder: Path) -> None:
    (folder / "leases").mkdir(mode=0o777)
    (folder / "leases").chmod(0o777)
    [found] = environment._devices()
    assert found.level is Level.PROBLEM
    assert "can be written by other users" in found.text


def test_a_port_that_is_taken_comes_with_one_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(environment, "DASHBOARD_PORT", server.getsockname()[1])
        [found] = worst(environment._ports())
        assert found.level is Level.NOTE
        assert environment.is_free(int(str(found.fix).rpartition(" ")[2]))


def test_shared_memory_of_gone_jobs_is_found_and_that_in_use_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "SHM_AGE_S", -1.0)
    for name in ("torch_4711_12_0", "torch_4712_12_0", "nccl-Ab12Cd", "PostgreSQL.1"):
        (folder / name).write_bytes(bytes(4096))
    with (folder / "torch_4712_12_0").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    [found] = worst(environment._shared_memory(JobConfig(), folder))
    mapped.close()
    assert found.text.startswith("2 files of jobs that are gone")
    assert set(str(found.fix).split()) == {"rm", f"{folder}/torch_4711_12_0", f"{folder}/nccl-Ab12Cd"}


def test_a_full_disk_and_one_that_cannot_be_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FREE_DISK", 2**62)
    [found] = environment._disk(folder / "runs")
    assert (found.level, found.fix) == (Level.PROBLEM, f"du -sh {folder}/runs/* | sort -h")


def test_a_check_that_cannot_look_says_so() -> None:
    def look() -> Iterator[Finding]:
        yield from ()
        raise PermissionError("not for you")

    [found] = attempted("disk", look)
    assert (found.level, found.text) == (Level.NOTE, "cannot be looked at here: not for you")


def test_clocks_that_differ_are_told() -> None:
    assert clock_finding(0.5, "the database").level is Level.OK
    assert clock_finding(-61.2, "the database").text.startswith("61 s behind that of the database")


@pytest.mark.parametrize(
    ("changes", "newest", "capability", "wrong"),
    [
        ({}, 12, 90, []),
        ({}, 13, 86, []),
        ({}, 12, 100, []),  # translated by the driver
        ({}, 12, 75, ["no kernels for GPU 0 of compute capability 7.5"]),
        ({}, 11, 90, ["needs a driver for CUDA 12.8, and this one is for CUDA 11"]),
        ({"sees": 0}, 12, 90, ["torch can open 0 of 2 GPUs"]),
        ({"cuda": None, "version": "2.13.0+cpu"}, 12, 90, ["built for the CPU alone"]),
        ({"nccl": None}, 12, 90, ["2 GPUs cannot work on one job"]),
    ],
)
def test_a_torch_that_does_not_go_with_the_gpus_is_a_problem(
    changes: dict[str, Any], newest: int, capability: int, wrong: list[str]
) -> None:
    found = worst(cuda_findings({**PROBE, **changes}, 2, newest, {"0": capability}))
    assert len(found) == len(wrong)
    for each, text in zip(found, wrong, strict=True):
        assert each.level is Level.PROBLEM and text in each.text


def test_a_torch_that_is_broken_or_old_is_a_problem() -> None:
    broken = probe_torch("raise ImportError('libcudart.so.12: cannot open shared object file')")
    [found] = torch_findings(broken)
    assert found.text == "cannot be imported: ImportError: libcudart.so.12: cannot open shared object file"
    assert "-m pip install" in str(found.fix)
    assert worst(torch_findings(PROBE)) == []
    assert [each.check for each in worst(torch_findings({**PROBE, "version": "2.9.1", "gloo": False}))] == [
        "torch",
        "gloo",
    ]


# All of it


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of torch takes seconds."""
    monkeypatch.setattr(environment, "probe_torch", lambda: {**PROBE, "cuda": None})


@pytest.mark.usefixtures("fast")
def test_all_studies_are_examined_and_fixed_by_one_call(
    sqlite: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    kill_a_sweep(new_study(sqlite), asked=1)
    finish(new_study(sqlite, "sound"), 0.1)

    def examined(study: str | None = None, *, fix: bool = False) -> list[Section]:
        return examine(patient(study, None, None, None), fix=fix)

    found = examined()
    assert [section.title for section in found] == ["environment", "storage", "study demo", "study sound"]
    assert num_problems(found) == 2
    assert {each.fix for each in worst(found[2].findings) if each.repair} == {"hpo doctor --fix"}
    assert num_problems(examined("sound")) == 0
    assert num_problems(examined(fix=True)) == 0
    assert num_problems(examined()) == 0
    with pytest.raises(StudyNotFoundError, match="no study 'nothing'"):
        examined("nothing")
    assert not no_leftover_processes()


@pytest.mark.usefixtures("fast")
def test_a_database_that_does_not_open_leaves_the_rest_to_be_examined(folder: Path) -> None:
    found = examine(patient(None, None, None, "postgresql+psycopg://user@127.0.0.1:1/db"))
    assert [section.title for section in found] == ["environment", "storage"]
    assert num_problems(found) == 1


def test_a_repair_that_fails_leaves_its_problem() -> None:
    def refuse() -> str:
        raise OSError("the disk is full")

    found = mended(Finding(check="x", level=Level.NOTE, text="it is so", repair=refuse))
    assert (found.level, found.text) == (Level.PROBLEM, "it is so; --fix could not: the disk is full")


def test_the_worst_of_each_place_is_printed_last(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(check="disk", level=Level.PROBLEM, text="is full", fix="du -sh runs/*"),
        Finding(check="port", level=Level.NOTE, text="is\ntaken"),
        Finding(check="python", level=Level.OK, text="3.11"),
    ]
    print_findings([Section(title="environment", findings=findings)], as_json=False)
    assert capsys.readouterr().out == (
        "\nenvironment\n"
        "  ok       python  3.11\n"
        "  note     port    is taken\n"
        "  problem  disk    is full\n"
        "                   du -sh runs/*\n"
        "\n1 problem, 1 note, 1 ok\n"
    )


def test_the_environment_of_a_job_is_looked_at_without_writing_anything(folder: Path, fast: None) -> None:
    before = sorted(folder.rglob("*"))
    checks = [each.check for each in environment_findings(JobConfig())]
    assert checks[:2] == ["python", "torch"] and {"disk", "clock", "ports", "devices"} <= set(checks)
    assert [path for path in sorted(folder.rglob("*")) if path not in before and "leases" not in path.parts] == []
