"""Versions of installed packages, each looked up once: reading a package's metadata takes milliseconds."""

from __future__ import annotations

import functools
import importlib.metadata


@functools.cache
def version_of(distribution: str) -> str:
    """Its version, or '?' when it has no metadata."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"
