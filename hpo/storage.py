"""The study database: any SQLAlchemy URL, opened so that many processes can share it."""

from __future__ import annotations

from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hpo.errors import StorageError
from hpo.masking import masked

SQLITE_WAIT_S = 60


def open_storage(url: str) -> RDBStorage:
    """Open (or create) the database. Raises StorageError with the reason and without credentials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number
        shown = masked(f"://{url}").removeprefix("://")  # even where its :// was forgotten
        raise StorageError(f"--storage {shown} is not an SQLAlchemy URL such as sqlite:///runs/studies.db") from error
    if "@" in (parsed.host or ""):  # it would end up in the driver's messages
        raise StorageError(f"--storage {masked(url)}: write an @ in the password as %40")
    try:
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed)
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4})
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = masked(str(getattr(error, "orig", None) or error)).splitlines()[0]
        raise StorageError(f"the storage {masked(url)} cannot be opened: {reason}") from error


def _open_sqlite(url: sqlalchemy.URL) -> RDBStorage:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    storage = RDBStorage(
        url.render_as_string(hide_password=False), engine_kwargs={"connect_args": {"timeout": SQLITE_WAIT_S}}
    )
    with storage.engine.connect() as connection:  # kept in the file: readers and one writer at the same time
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return storage


def default_url(root: Path) -> str:
    """The SQLite database in the folder of all output."""
    url = sqlalchemy.URL.create("sqlite", database=str(root / "studies.db"))
    return url.render_as_string()
