"""No credentials where URLs are shown."""

from __future__ import annotations

import pytest

from hpo.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
        ("API request to https://me:a/b@c@host/x failed", "API request to https://***@host/x failed"),
        (
            "postgresql+psycopg://host/db?user=me&password=x y",
            "postgresql+psycopg://host/db?user=me&password=*** y",
        ),
        ("https://TOKEN@host", "https://***@host"),
    ],
)
def test_urls_are_shown_without_credentials(text: str, shown: str) -> None:
    assert masked(text) == shown
