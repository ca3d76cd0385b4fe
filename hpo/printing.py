"""How commands print what they found: rows and tables for people, one JSON object for machines, what to type next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from hpo.console import as_typed, clean


def print_json(value: object) -> None:
    """One object; NaN and infinities, which JSON has no word for, as null."""
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_rows(rows: list[tuple[str, Any]]) -> None:
    """Names and values, after an empty line."""
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {clean(str(value))}")


def print_next(*commands: str, label: str = "next") -> None:
    """Commands, or lines of a program, to type next."""
    print(f"\n{label}:")
    for command in commands:
        print(f"  {as_typed(command)}")
