"""What ``hpo doctor`` finds in a database that is locked, damaged, old, away or none."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from hpo.doctor import storage
from hpo.doctor.finding import Level
from hpo.doctor.storage import opened, storage_findings
from hpo.errors import StorageError
from hpo.fold_ledger import FoldRow, FoldState
from hpo.ledger import LedgerStorage
from tests.unit.hpo.doctor.patients import fixed, new_study, opened_at, worst


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
