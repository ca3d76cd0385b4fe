"""The study database: any SQLAlchemy URL, opened so that many processes can share it."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.artifacts import FileSystemArtifactStore
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hpo.errors import DiskFullError, StorageError
from hpo.ledger import LedgerStorage
from hpo.masking import masked
from hpo.soundness import first_damage
from training.full_disk import describe, explain, is_disk_error

SQLITE_WAIT_S = 60
LOST_PEER = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""libpq's words for when a server is given up that does not answer, in seconds, the last in ms: the kernel's quarter of
an hour would be longer than a lease."""
LOST_CLIENT = {
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": "20s",
}
"""PostgreSQL's, for when it gives one of us up that was cut off in the middle of a transaction, with all its locks."""
CREATION_TRIES = 8
"""Processes that create the tables at the same time get in each other's way; the next try finds them there."""
COLLISION = re.compile("already exists|unique|locked", re.IGNORECASE)


def open_storage(url: str, *, create: bool = True) -> LedgerStorage:
    """Open the database, or `create` it. Raises StorageError with the reason and without credentials.

    The disk of a SQLite file may be full or broken, now or at any use: that raises DiskFullError.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number
        shown = masked(f"://{url}").removeprefix("://")  # even where its :// was forgotten
        raise StorageError(f"--storage {shown} is not an SQLAlchemy URL such as sqlite:///runs/studies.db") from error
    if re.search(r"\s", url) and parsed.get_backend_name() != "sqlite":  # no mask would find the end of the password
        raise StorageError("--storage: the URL has a space in it; write %20 for one in the password")
    if "@" in (parsed.host or ""):  # it would end up in the driver's messages
        raise StorageError(f"--storage {masked(url)}: write an @ in the password as %40")
    try:
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed, create=create)
        options = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4, "connect_args": _connect_args(parsed)}
        return _created(lambda: LedgerStorage(url, options))
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        if parsed.get_backend_name() == "sqlite" and (trouble := _disk_trouble(error, parsed)):
            raise DiskFullError(trouble) from error
        reason = masked(str(getattr(error, "orig", None) or error)).splitlines()[0]
        raise StorageError(f"the storage {masked(url)} cannot be opened: {reason}") from error


def _connect_args(url: sqlalchemy.URL) -> dict[str, Any]:
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    given = url.query.get("options", "")
    settings = [f"-c {name}={value}" for name, value in LOST_CLIENT.items()]
    options = " ".join([*settings, *([given] if isinstance(given, str) else given)]).strip()
    return {"connect_timeout": 10, **LOST_PEER, "options": options}


def _open_sqlite(url: sqlalchemy.URL, *, create: bool) -> LedgerStorage:
    if not url.database or url.database == ":memory:":
        raise StorageError("--storage: a database in memory is lost with the process; give a file, sqlite:///PATH")
    if not create and not Path(url.database).exists():
        raise StorageError(f"there is no study database {Path(url.database).absolute()} yet; run hpo sweep first")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    _require_sound(url)
    storage = _created(lambda: _in_wal_mode(url.render_as_string(hide_password=False)))
    _require_same_file(storage.engine, Path(url.database).absolute())

    @event.listens_for(storage.engine, "handle_error")
    def tell(context: sqlalchemy.ExceptionContext) -> None:
        if trouble := _disk_trouble(context.original_exception, url):
            raise DiskFullError(trouble)

    return storage


def _require_same_file(engine: sqlalchemy.Engine, path: Path) -> None:
    """From now on, raise SQLite's OperationalError instead of writing where nobody would find it any more."""

    def identity() -> tuple[int, int] | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    opened = identity()

    @event.listens_for(engine, "checkout")
    def compare(*_: object) -> None:
        if identity() != opened:
            raise sqlite3.OperationalError(f"{path} was removed, or another file put in its place, while it was in use")


def _disk_trouble(error: BaseException, url: sqlalchemy.URL) -> str:
    """What is wrong with the disk of the SQLite file; "" for another error."""
    folder, original = Path(url.database or "").absolute().parent, getattr(error, "orig", error)
    if getattr(original, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return describe(folder, str(original))
    return explain(error, folder) if isinstance(error, OSError) and is_disk_error(error) else ""


def _require_sound(url: sqlalchemy.URL) -> None:
    """Raises StorageError when the file is damaged."""
    if not Path(str(url.database)).is_file():
        return
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": SQLITE_WAIT_S})
    try:
        damage = first_damage(engine)
    finally:
        engine.dispose()
    if damage:
        raise StorageError(
            f"the study database {url.database} is damaged: {damage}; put a copy of it in its place, or move it away"
            " and begin the study anew: its run directories stay"
        )


class _Connection(sqlite3.Connection):
    """Refuses rows of trials that are not there, as other databases do: of a study that was deleted meanwhile."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA foreign_keys=ON")


def _in_wal_mode(url: str) -> LedgerStorage:
    """Readers and one writer at the same time, kept in the file; SQLite does not wait for a writer to change to it."""
    storage = LedgerStorage(url, {"connect_args": {"timeout": SQLITE_WAIT_S, "factory": _Connection}})
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return storage


def _created(create: Callable[[], LedgerStorage]) -> LedgerStorage:
    for delay in range(CREATION_TRIES):
        try:
            return create()
        except SQLAlchemyError as error:
            if not COLLISION.search(str(error)):
                raise
            time.sleep(0.05 * 2**delay)
    return create()


def default_url(root: Path) -> str:
    """The SQLite database in the folder of all output."""
    url = sqlalchemy.URL.create("sqlite", database=str((root / "studies.db").absolute()))
    return url.render_as_string()


def artifact_store(root: Path) -> FileSystemArtifactStore:
    """Where the files live that optuna-dashboard shows with a trial."""
    folder = root / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))
