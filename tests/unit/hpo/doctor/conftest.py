"""A folder and a database to be examined, and a torch that is quickly asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.doctor import environment
from hpo.ledger import LedgerStorage
from tests.unit.hpo.doctor.patients import PROBE, opened_at


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


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of torch takes seconds."""
    monkeypatch.setattr(environment, "probe_torch", lambda: {**PROBE, "cuda": None})
