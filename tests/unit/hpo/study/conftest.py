"""Databases for a study, and a folder to work in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import RDBStorage

from hpo.ledger import LedgerStorage
from hpo.storage import open_storage
from tests.unit.hpo.study.definitions import close


@pytest.fixture
def storage(storage_url: str) -> Iterator[RDBStorage]:
    """A fresh database, once for each kind."""
    opened = open_storage(storage_url)
    yield opened
    close(opened)


@pytest.fixture
def memory() -> Iterator[RDBStorage]:
    """One kind of database, the fastest, for what does not depend on it."""
    opened = LedgerStorage("sqlite://")
    yield opened
    close(opened)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with everything that is written below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
