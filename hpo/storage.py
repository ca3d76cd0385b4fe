"""The study database: any SQLAlchemy URL, opened so that many processes can share it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import sqlalchemy
from optuna.artifacts import FileSystemArtifactStore
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hpo.errors import StorageError
from hpo.ledger import LedgerStorage
from hpo.masking import masked
from hpo.soundness import first_damage

SQLITE_WAIT_S = 60
CREATION_TRIES = 8
"""Processes that create the tables at the same time get in each other's way; the next try finds them there."""
COLLISION = re.compile("already exists|unique|locked", re.IGNORECASE)


def open_storage(url: str, *, create: bool = True) -> LedgerStorage:
    """Open the database, or `create` it. Raises StorageError with the reason and without credentials."""
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
        return _created(lambda: LedgerStorage(url, {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}))
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        reason = masked(str(getattr(error, "orig", None) or error)).splitlines()[0]
        raise StorageError(f"the storage {masked(url)} cannot be opened: {reason}") from error


def _open_sqlite(url: sqlalchemy.URL, *, create: bool) -> LedgerStorage:
    if not url.database or url.database == ":memory:":
        raise StorageError("--storage: a database in memory is lost with the process; give a file, sqlite:///PATH")
    if not create and not Path(url.database).exists():
        raise StorageError(f"there is no study database {Path(url.database).absolute()} yet; run hpo sweep first")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    _require_sound(url)
    return _created(lambda: _in_wal_mode(url.render_as_string(hide_password=False)))


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


def _in_wal_mode(url: str) -> LedgerStorage:
    """Readers and one writer at the same time, kept in the file; SQLite does not wait for a writer to change to it."""
    storage = LedgerStorage(url, {"connect_args": {"timeout": SQLITE_WAIT_S}})
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
