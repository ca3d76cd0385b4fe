"""The study database: whether it can be reached, is sound, and lets its users in without a wait."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import delete, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from hpo.console import counted
from hpo.doctor.environment import clock_finding
from hpo.doctor.filesystem import network_kind
from hpo.doctor.finding import Finding, Level, attempted, note, ok, problem, processes_with
from hpo.errors import StorageError
from hpo.ledger import DATABASE_TIME, LedgerStorage
from hpo.ledger_tables import folds, leases
from hpo.masking import masked
from hpo.storage import open_storage

LOCK_WAIT_S = 5.0
"""Whoever holds a lock for longer holds up every sweep."""
SLOW_LOCK_S = 0.1
NUM_LOCKS = 5
IDLE_HOLDERS = """
SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = 'studies'::regclass AND granted AND state LIKE 'idle in transaction%%' AND pid <> pg_backend_pid()
"""
"""Sessions that have rows of studies locked, and do nothing."""
MOST_CONNECTIONS = 0.9
"""Of those that a server takes: each sweep and worker has up to five."""


def opened(url: str, sweep: str) -> tuple[LedgerStorage | None, list[Finding]]:
    """The database, None where it cannot be used, and what was found on the way; `sweep` is what makes one.

    Raises StorageError when `url` is none.
    """
    path = _sqlite_path(url)
    if path is not None and not path.exists():
        return None, [note("database", f"there is no {path.absolute()} yet", fix=sweep)]
    found = [*_file_findings(path)] if path else []
    if any(each.check in ("lock", "integrity") and each.level is Level.PROBLEM for each in found):
        return None, found  # opening it would wait for minutes, or fail in the middle of something
    try:
        storage = open_storage(url, create=False)
    except StorageError as error:
        return None, [*found, problem("database", str(error), fix=_way_in(str(error), url))]
    return storage, [ok("database", masked(url)), *found]


def _sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases. Raises StorageError for what is no URL of a storage."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        open_storage(url)  # knows how to say it
        raise
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        open_storage(url)
    return Path(str(parsed.database))


def _way_in(error: str, url: str) -> str | None:
    if "storage upgrade" in error:  # Optuna's words for tables of an older version
        optuna = Path(sys.executable).with_name("optuna")
        shown = shlex.quote(url) if masked(url) == url else '"$HPO_STORAGE"'
        return f"{shlex.quote(str(optuna))} storage upgrade --storage {shown}"
    if "pip install -U optuna" in error:
        return f"{shlex.quote(sys.executable)} -m pip install -U optuna"
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return shlex.join(["pg_isready", *_server(parsed)])
    return None


def _server(url: URL) -> list[str]:
    """What tells PostgreSQL's tools where the server is."""
    return [*(["-h", url.host] if url.host else []), *(["-p", str(url.port)] if url.port else [])]


# A file


def _file_findings(path: Path) -> Iterator[Finding]:
    if kind := network_kind(path):
        text = f"{path} is on a network file system ({kind}), where SQLite loses data; use a local disk, or PostgreSQL"
        yield problem("file system", text, fix="export HPO_STORAGE=postgresql+psycopg://USER@HOST/DATABASE")
    lock = _sqlite_lock(path)
    if lock is not None:
        yield lock
    if lock is not None and lock.level is Level.PROBLEM:
        return
    try:
        damage = _damage(path)
    except sqlite3.Error as error:
        damage = str(error)
    if damage:
        whole = shlex.quote(str(path.with_name(f"recovered-{path.name}")))
        text = f"{path} is damaged ({damage}); put back a copy, or save what can be read and use that"
        yield problem("integrity", text, fix=f"sqlite3 {shlex.quote(str(path))} .recover | sqlite3 {whole}")
    else:
        yield ok("integrity", "SQLite finds no damage")


def _damage(path: Path) -> str:
    """What is wrong with a SQLite file; "" for nothing. It is read, not written."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        first = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return "" if first == "ok" else " ".join(first.split())


# A database that is open


def storage_findings(storage: LedgerStorage, folders: Iterable[Path], root: Path) -> Iterator[Finding]:
    """Of a database that could be opened; `folders` are those of its studies, `root` that of all output."""
    yield ok("schema", f"Optuna's {storage.get_current_version()}, which is that of the installed one")
    if storage.engine.name == "sqlite":
        yield from _journal(storage)
    else:
        yield from _server_findings(storage)
    yield from _stray_rows(storage)
    yield from attempted("folders", lambda: _folders(folders, root))


def _journal(storage: LedgerStorage) -> Iterator[Finding]:
    with storage.engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode == "wal":
        yield ok("journal", "write-ahead: readers and a writer do not wait for each other")
    else:
        path = shlex.quote(str(storage.engine.url.database))
        fix = f"sqlite3 {path} 'PRAGMA journal_mode=WAL'"
        yield problem("journal", f"is {mode}: the file system refuses a write-ahead log, so readers wait", fix=fix)


def _sqlite_lock(path: Path) -> Finding | None:
    """None where the file is no database."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)) as connection:
            return _latency(_took(lambda: connection.execute("BEGIN IMMEDIATE"), connection.rollback))
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            users = processes_with(str(path.resolve()))
            who = f"; these have the file open: {', '.join(map(str, users))}" if users else ""
            fix = f"ps -f -p {','.join(map(str, users))}" if users else None
            return problem("lock", f"another process has held the write lock for {LOCK_WAIT_S:g} s{who}", fix=fix)
        if "readonly" in str(error) or "unable to open" in str(error):
            return problem("lock", f"{path} cannot be written: {error}", fix=f"ls -ld {shlex.quote(str(path.parent))}")
        return None


def _took(lock: Callable[[], object], unlock: Callable[[], object]) -> float:
    """Seconds to take a lock, the median of a few; each is let go at once."""
    taken = []
    for _ in range(NUM_LOCKS):
        began = time.perf_counter()
        lock()
        taken.append(time.perf_counter() - began)
        unlock()
    return statistics.median(taken)


def _latency(took: float) -> Finding:
    text = f"taken in {1000 * took:.3g} ms (median of {NUM_LOCKS})"
    if took > SLOW_LOCK_S:
        return note("lock", f"{text}: a slow disk or network, or many sweeps at once; each trial takes some tens")
    return ok("lock", text)


# A server


def _server_findings(storage: LedgerStorage) -> Iterator[Finding]:
    clock = f"SELECT {DATABASE_TIME[storage.engine.name]}"
    with storage.engine.connect() as connection:
        version = connection.exec_driver_sql("SHOW server_version").scalar()
        most = int(str(connection.exec_driver_sql("SHOW max_connections").scalar()))
        used = int(str(connection.exec_driver_sql("SELECT sum(numbackends) FROM pg_stat_database").scalar()))
        asked = time.time()
        theirs = float(str(connection.exec_driver_sql(clock).scalar()))
        ahead = (asked + time.time()) / 2 - theirs
    text = f"{used} of {most} connections in use"
    if used > MOST_CONNECTIONS * most:
        more = f"ALTER SYSTEM SET max_connections = {2 * most}"
        fix = f"{_psql(storage.engine.url)} -c '{more}'"
        yield problem("server", f"PostgreSQL {version}, {text}; a larger limit counts after a restart", fix=fix)
    else:
        yield ok("server", f"PostgreSQL {version}, {text}")
    yield clock_finding(ahead, "the database")
    yield from _row_lock(storage)


def _psql(url: URL) -> str:
    user = ["-U", url.username] if url.username else []
    return shlex.join(["psql", *_server(url), *user, "-d", str(url.database)])


def _row_lock(storage: LedgerStorage) -> Iterator[Finding]:
    """The rows of studies are what sweeps wait for, when one creates a trial."""
    with storage.engine.connect() as connection:

        def lock() -> None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{1000 * LOCK_WAIT_S:.0f}ms'")
            connection.exec_driver_sql("SELECT study_id FROM studies ORDER BY study_id FOR UPDATE")

        try:
            took = _took(lock, connection.rollback)
        except DBAPIError as error:
            if "lock timeout" not in str(error):
                raise
            connection.rollback()
        else:
            yield _latency(took)
            return
        pids = [int(pid) for pid in connection.exec_driver_sql(IDLE_HOLDERS).scalars()]
    text = f"a session has held a study's row for {LOCK_WAIT_S:g} s"
    if not pids:
        yield problem("lock", f"{text}, and is at work; look again")
        return
    end = "; ".join(f"SELECT pg_terminate_backend({pid})" for pid in pids)
    idlers = ", ".join(map(str, pids))
    fix = f"{_psql(storage.engine.url)} -c '{end}'"
    yield problem("lock", f"{text}; idle inside a transaction: server process {idlers}", fix=fix)


# What is kept there


def _stray_rows(storage: LedgerStorage) -> Iterator[Finding]:
    """Leases of trials that do not run, and folds of trials that are not there."""
    trial = models.TrialModel
    of_lease = select(trial.trial_id).where(trial.trial_id == leases.c.trial_id, trial.state == TrialState.RUNNING)
    of_fold = select(trial.trial_id).where(trial.trial_id == folds.c.trial_id)
    stray = {leases: ~of_lease.exists(), folds: ~of_fold.exists()}
    with storage.engine.connect() as connection:
        counts = [
            connection.scalar(select(func.count()).select_from(table).where(stray[table])) or 0 for table in stray
        ]
    if not any(counts):
        yield ok("leases", "each is of a trial that runs")
        return

    def drop() -> str:
        with storage.engine.begin() as connection:
            dropped = sum(connection.execute(delete(table).where(stray[table])).rowcount for table in stray)
        return f"{counted(dropped, 'row')} dropped"

    num_leases, num_folds = counts
    text = f"{counted(num_leases, 'lease')} of no running trial, {counted(num_folds, 'fold')} of no trial"
    yield note("leases", f"{text}: a study was deleted, or something else than a sweep told its trials", repair=drop)


def _folders(known: Iterable[Path], root: Path) -> Iterator[Finding]:
    """Folders with trials that no study of this storage has; those of another storage look the same."""
    ours = {folder.resolve() for folder in known}
    with_trials = {path.parent for path in root.glob("*/trial_[0-9]*") if path.is_dir()} if root.is_dir() else set()
    strange = sorted(folder for folder in with_trials if folder.resolve() not in ours)
    for folder in strange:
        text = f"{folder} has trials, but no study of this storage does: it is another's, or the study was deleted"
        yield note("folders", f"{text}; if it is not needed", fix=f"rm -r {shlex.quote(str(folder))}")
    if not strange:
        yield ok("folders", f"each folder of trials in {root} has its study")
