"""Whether a study database in a SQLite file is sound, asked before anything is made of it.

A database server looks after its files. SQLite finds damage when it happens to read it, and none inside of a value:
here every page is looked at, and of each value whether it can be what its column and its key say. A flipped digit is
beyond this: SQLite keeps no checksums.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import Column, Connection, DateTime, Enum, Float, Integer, Table

Kind = type | tuple[type, ...]

NUMBER = (int, float)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("hpo:uid", "hpo:folder", "hpo:reason"), str),
    **dict.fromkeys(("hpo:definition", "hpo:study", "hpo:owner", "hpo:failure", "hpo:sampled", "hpo:violated"), dict),
    **dict.fromkeys(("hpo:fold_scores", "hpo:fold_times", "hpo:estimate", "hpo:until"), list),
    **dict.fromkeys(("hpo:continues", "hpo:revives", "hpo:succeeds", "hpo:retries"), int),
    "hpo:device_seconds": NUMBER,
    "hpo:audit": dict,
    "fixed_params": dict,
    "study:metric_names": list,
}
"""What JSON the attributes of hpo/study.py, hpo/tally.py, hpo/ledger.py and hpo/spending.py are, and Optuna's own."""
NEEDED: dict[str, dict[str, Kind]] = {
    "hpo:definition": {"objective": (dict, list), "search_space": dict, "config": dict, "max_epochs": int},
    "hpo:study": {"study": dict, "job": dict, "environment": str, "settings": dict},
    "hpo:failure": {"kind": str, "message": str},
}
"""What is in some of them."""


def first_damage(engine: sqlalchemy.Engine) -> str | None:
    """What is wrong with the database; None when nothing is found. Raises SQLAlchemyError where it cannot be read."""
    with engine.connect() as connection:
        if (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
            return str(found)
        there = sqlalchemy.inspect(connection).get_table_names()
        tables = [table for table in BaseModel.metadata.sorted_tables if table.name in there]
        return next((damage for table in tables for damage in _damages(connection, table)), None)


def _damages(connection: Connection, table: Table) -> Iterator[str]:
    for column in table.columns:
        # As bytes, since what is not UTF-8 fails in the driver.
        key = "key" if "key" in table.columns and column.name.endswith("_json") else "''"
        chosen = f'SELECT DISTINCT CAST({key} AS BLOB), CAST("{column.name}" AS BLOB) FROM "{table.name}"'  # nosec B608 - our names
        if column.name.endswith("_json") or isinstance(column.type, DateTime):
            rows = connection.exec_driver_sql(chosen).all()
            is_damaged = not all(can_be_read(column, value, key or b"") for key, value in rows)
        else:
            is_damaged = connection.exec_driver_sql(f"{chosen} WHERE NOT ({_rule(column)}) LIMIT 1").first() is not None
        if is_damaged:
            yield f"{table.name}.{column.name} holds something that cannot be read"


def _rule(column: Column[Any]) -> str:
    """What holds for each value of a column, in SQL."""
    stored_as = ["integer"] if isinstance(column.type, Integer) else ["text"]
    stored_as = ["integer", "real"] if isinstance(column.type, Float) else stored_as
    kinds = ", ".join(f"'{each}'" for each in [*stored_as, *(["null"] if column.nullable else [])])
    words = ", ".join(f"'{each}'" for each in column.type.enums) if isinstance(column.type, Enum) else ""
    return f'typeof("{column.name}") IN ({kinds})' + (f' AND "{column.name}" IN ({words})' if words else "")


def can_be_read(column: Column[Any], value: bytes | None, key: bytes) -> bool:
    """Whether a value, as stored, is a date or JSON of the kind that its attribute `key` has."""
    if value is None:
        return bool(column.nullable)
    try:
        if isinstance(column.type, DateTime):
            return bool(datetime.fromisoformat(value.decode()))
        return _is_kind(json.loads(value.decode()), key.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False


def _is_kind(value: Any, key: str) -> bool:
    kind: Any = KINDS.get(key, object)
    needed = NEEDED.get(key, {})
    return isinstance(value, kind) and all(isinstance(value.get(name), each) for name, each in needed.items())
