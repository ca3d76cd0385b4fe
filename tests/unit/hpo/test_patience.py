"""Calls of a database that is away: a real PostgreSQL server that is stopped and started under them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from hpo.ledger import LedgerStorage
from hpo.patience import Patience, is_passing
from hpo.storage import open_storage
from tests.postgres import PostgresMissingError, PostgresServer, running_server


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One that a test may stop and start."""
    try:
        with running_server() as server:
            yield server
    except PostgresMissingError as missing:
        pytest.skip(str(missing))


@contextmanager
def opened(url: str) -> Iterator[LedgerStorage]:
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def restarts(server: PostgresServer, *, times: int) -> Iterator[None]:
    """Meanwhile the server is stopped at once, and started again, again and again."""

    def restart() -> None:
        for _ in range(times):
            time.sleep(0.3)
            server.stop()
            time.sleep(0.2)
            server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_server_that_restarts_loses_and_doubles_nothing(server: PostgresServer) -> None:
    with opened(server.url) as storage:
        study = optuna.create_study(storage=storage, study_name="restarts")
        storage.patience.lasts_s = 60.0
        told: dict[int, float] = {}
        with restarts(server, times=4):
            while len(told) < 60:
                trial = study.ask()
                x = trial.suggest_float("x", 0.0, 1.0)
                trial.report(x, 1)
                study.tell(trial, x)
                told[trial.number] = x
        trials = study.get_trials()
        assert {trial.number: trial.value for trial in trials if trial.state is TrialState.COMPLETE} == told
        # One that was made just when the connection broke is left over, and nobody was told of it.
        assert {trial.state for trial in trials if trial.number not in told} <= {TrialState.RUNNING}


def test_what_was_committed_when_the_connection_broke_is_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        study = optuna.create_study(storage=storage)
        storage.patience.lasts_s = 5.0
        real: Callable[..., bool] = LedgerStorage._set_state_values

        def breaks_after(self: LedgerStorage, *args: Any) -> bool:
            monkeypatch.setattr(LedgerStorage, "_set_state_values", real)
            real(self, *args)
            raise locked()

        for state, value in ((TrialState.COMPLETE, 0.5), (TrialState.FAIL, None)):
            trial = study.ask()
            monkeypatch.setattr(LedgerStorage, "_set_state_values", breaks_after)
            study.tell(trial, value, state=state)
        study.enqueue_trial({})
        monkeypatch.setattr(LedgerStorage, "_set_state_values", breaks_after)
        assert study.ask().number == 2
        assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "RUNNING"]


def test_without_patience_it_is_tried_once(tmp_path: Path) -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        raise locked()

    with pytest.raises(OperationalError):
        Patience()(fails)
    assert len(calls) == 1


def test_it_says_that_it_waits_and_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("hpo.patience.TOLD_AFTER_S", 0.0)

    def fails() -> None:
        raise locked()

    with pytest.raises(OperationalError):
        Patience(0.5, said.append)(fails)
    assert said == ["the study's database does not answer, waiting for it: database is locked"]


def locked() -> OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return OperationalError("UPDATE", {}, error)


def test_a_wrong_password_and_a_full_disk_are_not_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert not is_passing(OperationalError("INSERT", {}, full))
    assert is_passing(locked())
    with opened(server.url) as storage, pytest.raises((SQLAlchemyError, StorageInternalError)) as refused:
        storage.patience.lasts_s = 60.0
        storage.patience(lambda: storage.engine.connect().exec_driver_sql("SELECT * FROM nowhere"))
    assert not is_passing(refused.value)


def test_a_client_that_is_cut_off_in_a_transaction_does_not_keep_its_locks(server: PostgresServer) -> None:
    with opened(f"{server.url}?options=-c%20statement_timeout%3D7s") as storage, storage.engine.connect() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "statement_timeout")
        }
    assert shown == {
        "idle_in_transaction_session_timeout": "30s",
        "tcp_keepalives_idle": "10",
        "statement_timeout": "7s",
    }, "what the user asks for stays"
