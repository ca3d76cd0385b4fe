"""A place for packages that are installed but not real."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of installed packages."""
    path = tmp_path / "site packages"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    return path
