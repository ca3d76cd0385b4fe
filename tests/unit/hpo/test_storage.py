"""Opening the study database: shared by processes, errors with the reason, and no password in any text."""

from __future__ import annotations

import sqlite3
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models

from hpo.errors import DiskFullError, StorageError
from hpo.masking import masked
from hpo.storage import SQLITE_WAIT_S, default_url
from hpo.storage import open_storage as really_open
from tests.conftest import SmallDisk

Open = Callable[[str], RDBStorage]


@pytest.fixture
def open_storage() -> Iterator[Open]:
    """``hpo.storage.open_storage``, with the connections closed after the test."""
    opened: list[RDBStorage] = []

    def open_and_keep(url: str) -> RDBStorage:
        opened.append(really_open(url))
        return opened[-1]

    yield open_and_keep
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:s3cret@host/db", "postgresql://***@host/db"),
        ("postgresql+psycopg://user:s3cret@host:5432/db", "postgresql+psycopg://***@host:5432/db"),
        ("postgresql://:s3cret@host/db", "postgresql://***@host/db"),
        ("postgresql://user:s3/cr:et@host/db", "postgresql://***@host/db"),
        ("postgresql://user:s3@cr@et@host/db", "postgresql://***@host/db"),
        ("postgresql://host/db?user=u&password=s3cret&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("postgresql://host/db?PASSWORD=s3cret", "postgresql://host/db?PASSWORD=***"),
        ("postgresql://host/db?sslpassword=s3cret", "postgresql://host/db?sslpassword=***"),
        ("http://host/?token=s3cret&passwd=s3cret", "http://host/?token=***&passwd=***"),
        ("cannot reach a://u:s3cret@h nor b://u:s3cret@h", "cannot reach a://***@h nor b://***@h"),
        ("postgresql://user@host:5432/db", "postgresql://***@host:5432/db"),
        ("sqlite:///runs/studies.db", "sqlite:///runs/studies.db"),
        ("write to me@example.com: soon", "write to me@example.com: soon"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("piece", ["x", "postgresql://", "a:b@", "://a:b@", "token="])
def test_four_times_the_text_is_masked_in_about_four_times_the_time(piece: str) -> None:
    def taken(length: int) -> float:
        text = (piece * length)[:length]
        return median(timeit.repeat(lambda: masked(text), timer=time.process_time, number=2, repeat=5))

    assert taken(80_000) < 12 * taken(20_000) + 0.01


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "is not an SQLAlchemy URL such as sqlite:///runs/studies.db"),
        ("", "is not an SQLAlchemy URL"),
        ("user:s3cret@host/db", "is not an SQLAlchemy URL"),
        ("postgresql+psycopg://user:s3cret@host:port/db", "is not an SQLAlchemy URL"),
        ("postgresql+psycopg://user:s3cr@et@127.0.0.1:1/db", "write an @ in the password as %40"),
        ("postgresql+psycopg://user:s3 cr et@127.0.0.1:1/db", "write %20 for one in the password"),
        ("postgresql+psycopg://user:s3cret@127.0.0.1:1/db", "cannot be opened: connection failed"),
        ("postgresql+psycopg://user:s3%40cret@127.0.0.1:1/db", "cannot be opened: connection failed"),
        ("postgresql+psycopg://127.0.0.1:1/db?user=u&password=s3cret", "cannot be opened: connection failed"),
        ("nosuchdatabase://user:s3cret@host/db", "cannot be opened: Can't load plugin"),
        ("postgresql+nosuchdriver://user:s3cret@host/db", "cannot be opened: Can't load plugin"),
        ("sqlite://user:s3cret@host/db", "cannot be opened: Invalid SQLite URL"),
        ("sqlite:////proc/nothing/here/studies.db", "cannot be opened: "),
    ],
)
def test_an_unusable_storage_is_an_error_with_the_reason_and_without_the_password(
    open_storage: Open, url: str, reason: str
) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    text = str(caught.value)
    assert reason in text
    assert "s3c" not in text and "cret" not in text and "@et" not in text
    assert "\n" not in text


def test_a_file_that_is_no_database_is_an_error_with_the_reason(open_storage: Open, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"this is no database, but long enough to be mistaken for one. " * 10)
    with pytest.raises(StorageError, match="file is not a database"):
        open_storage(f"sqlite:///{path}")


def test_a_folder_is_no_database(open_storage: Open, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open database file"):
        open_storage(f"sqlite:///{tmp_path}")


def test_a_sqlite_file_is_made_with_its_folder_and_in_write_ahead_mode(open_storage: Open, tmp_path: Path) -> None:
    path = tmp_path / "a folder/it's/studies.db"
    storage = open_storage(f"sqlite:///{path}")
    optuna.create_study(storage=storage, study_name="demo")
    with sqlalchemy.create_engine(f"sqlite:///{path}").connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_sqlite_file_that_another_process_is_making_is_waited_for(open_storage: Open, tmp_path: Path) -> None:
    writer = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, check_same_thread=False)
    writer.execute("CREATE TABLE made_by_another (x)")
    RDBStorage(f"sqlite:///{tmp_path}/studies.db").engine.dispose()  # its tables are there, it is still writing
    writer.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, writer.commit).start()
    assert open_storage(f"sqlite:///{tmp_path}/studies.db").get_all_studies() == []
    writer.close()


def test_a_sqlite_connection_waits_for_other_writers(open_storage: Open, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == SQLITE_WAIT_S * 1000


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_that_ends_with_the_process_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="in memory is lost with the process; give a file"):
        really_open(url)


def test_only_who_creates_gets_a_new_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"there is no study database {tmp_path}/typo.db yet"):
        really_open(f"sqlite:///{tmp_path}/typo.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_the_default_database_is_in_the_folder_of_all_output(open_storage: Open, tmp_path: Path) -> None:
    url = default_url(tmp_path / "my runs")
    optuna.create_study(storage=open_storage(url), study_name="demo")
    assert (tmp_path / "my runs/studies.db").is_file()


def test_two_openings_of_a_storage_see_the_same_studies(open_storage: Open, storage_url: str) -> None:
    optuna.create_study(storage=open_storage(storage_url), study_name="demo").set_user_attr("key", [1, "x"])
    assert optuna.load_study(study_name="demo", storage=open_storage(storage_url)).user_attrs == {"key": [1, "x"]}


def test_a_full_disk_is_told_with_its_folder_and_loses_nothing(open_storage: Open, small_disk: SmallDisk) -> None:
    url = f"sqlite:///{small_disk.path}/studies.db"
    says = (
        f"^{small_disk.path} cannot be written: database or disk is full; 0.0 MiB of 24.0 MiB are free now; make room"
    )
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    study.tell(study.ask(), 1.0)
    small_disk.fill()
    for _ in range(2):
        with pytest.raises(DiskFullError, match=says):
            study.tell(study.ask(), 2.0)
    assert [trial.value for trial in optuna.load_study(study_name="s", storage=open_storage(url)).trials] == [1.0]
    with pytest.raises(DiskFullError, match=says):
        open_storage(f"sqlite:///{small_disk.path}/other.db")
    small_disk.free()
    study.tell(study.ask(), 3.0)
    assert [trial.value for trial in study.trials] == [1.0, 3.0]
    with sqlite3.connect(small_disk.path / "studies.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.parametrize("change", ["ADD COLUMN since_when FLOAT", "DROP COLUMN facts"])
def test_tables_of_another_version_are_refused_with_what_to_do_and_left_alone(
    open_storage: Open, storage_url: str, change: str
) -> None:
    with open_storage(storage_url).engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE hpo_folds {change}")
    column = change.split()[2]
    with pytest.raises(StorageError, match=f"hpo_folds .they differ in: {column}.; go on with that version"):
        open_storage(storage_url)


def test_tables_of_another_version_of_optuna_are_refused_with_the_command_that_changes_them(
    open_storage: Open, storage_url: str
) -> None:
    with open_storage(storage_url).engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    with pytest.raises(StorageError, match="optuna storage upgrade"):
        open_storage(storage_url)


def test_a_database_that_optuna_made_gets_our_tables(open_storage: Open, storage_url: str) -> None:
    optuna.create_study(storage=storage_url, study_name="theirs")
    storage = open_storage(storage_url)
    assert {"hpo_folds", "hpo_leases"} <= set(sqlalchemy.inspect(storage.engine).get_table_names())


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_file_that_goes_while_it_is_used_is_an_error_at_once_and_nothing_is_written_beside_it(
    open_storage: Open, tmp_path: Path, what: str
) -> None:
    storage, path = open_storage(f"sqlite:///{tmp_path}/s.db"), tmp_path / "s.db"
    study = optuna.create_study(storage=storage, study_name="s")
    kept = path.rename(tmp_path / "away.db")
    if what == "replaced":
        path.write_bytes(b"another")
    with pytest.raises(StorageInternalError) as raised:
        study.ask()
    assert "s.db was removed, or another file put in its place, while it was in use" in str(raised.value.__cause__)
    kept.rename(path)
    assert study.ask().number == 0, "the same file is there again"


def test_nothing_is_written_of_a_trial_that_is_not_there(open_storage: Open, storage_url: str) -> None:
    """Its study was deleted between the look and the write; SQLite would give its id to another trial."""
    late = models.TrialIntermediateValueModel(trial_id=7, step=3, intermediate_value=0.5)
    late.intermediate_value_type = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    session = open_storage(storage_url).scoped_session()
    session.add(late)
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        session.commit()
    session.rollback()
