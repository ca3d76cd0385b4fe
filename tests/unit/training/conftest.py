"""What tests of one process put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def ordinary_arithmetic() -> Iterator[None]:
    """Afterwards numbers too small to be normal are what they are."""
    yield
    torch.set_flush_denormal(False)
