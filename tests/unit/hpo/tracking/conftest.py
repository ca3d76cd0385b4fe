"""A fresh MLflow, and a model for it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hpo.tracking.real_mlflow import Mlflow


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: they take most of a second to make, a copy takes none."""
    root = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings(action="ignore"):
        Mlflow(root).client.search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def mlflow(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    root = tmp_path / "it's a run's folder"
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield Mlflow(root)
    assert list((tmp_path / "cwd").iterdir()) == [], "something was written to the working directory"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder
