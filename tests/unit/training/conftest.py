"""A place for packages that are installed but not real; and arithmetic as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of installed packages."""
    path = tmp_path / "site packages"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    return path


@pytest.fixture
def ordinary_arithmetic() -> Iterator[None]:
    """Afterwards numbers too small to be normal are what they are."""
    yield
    torch.set_flush_denormal(False)
