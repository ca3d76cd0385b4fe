"""Whether what a file says of a study can be: asked of all of it, before anything is made of it.

A checksum tells what was damaged, not what another version wrote or somebody changed. What passes here fits into any
database, is read again by Optuna, and is no damage to hpo/soundness.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from itertools import chain
from reprlib import repr as shortened
from types import SimpleNamespace
from typing import Any

import sqlalchemy
from optuna.distributions import json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import Column, Table, UniqueConstraint

from hpo import fold_ledger
from hpo.fold_ledger import FoldState
from hpo.ledger import SUCCEEDS
from hpo.ledger_tables import folds
from hpo.moving.snapshot import (
    DIRECTIONS,
    INTERMEDIATE_VALUES,
    PARAMS,
    STUDY_USER_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
    Row,
    Snapshot,
    fields_of,
    known_tables,
)
from hpo.soundness import can_be_read
from hpo.study import FOLDER, IDENTITY, UID
from hpo.tally import CONTINUES, REVIVES

INTEGERS = range(2**31)
"""What PostgreSQL has room for; none of ours is negative."""
NEVER_NULL = {"number", "key", "value_json", "param_name", "param_value", "distribution_json"}
"""Columns that Optuna always fills, though its tables do not say so."""

EARLIER = {SUCCEEDS, CONTINUES, REVIVES}
"""Attributes of a trial that name one before it; a circle of them would have no end."""


def understood(values: Any) -> Snapshot:
    """The snapshot that JSON's `values` are. Raises ValueError with the first thing that is not understood."""
    _require_keys("study.json", values, {"study", "tables"})
    study, tables = values["study"], values["tables"]
    if not isinstance(study, str):
        raise _strange("study", study)
    _require_keys("tables", tables, known_tables().keys())
    for table in known_tables().values():
        _require_rows(table, tables[table.name])
    snapshot = Snapshot(study=study, tables=tables)
    _require_trials(snapshot)
    _require_attributes(snapshot)
    _require_values(snapshot)
    for place, row in _places(snapshot, PARAMS):
        _require_parameter(place, row)
    for place, row in _places(snapshot, folds):
        _require_fold(place, row)
    return snapshot


def _strange(place: str, value: Any) -> ValueError:
    return ValueError(f"{place} is {shortened(value)}")


def _places(snapshot: Snapshot, table: Table) -> list[tuple[str, Row]]:
    return [(f"{table.name}[{index}]", row) for index, row in enumerate(snapshot.tables[table.name])]


# Any table


def _require_keys(place: str, value: Any, keys: Any) -> None:
    if not isinstance(value, dict):
        raise _strange(place, value)
    if lacking := keys - value.keys():
        raise ValueError(f"{place} has no {', '.join(sorted(lacking))}")
    if strange := value.keys() - keys:
        raise ValueError(f"{place} has {', '.join(map(shortened, sorted(strange)))} in it")


def _require_rows(table: Table, rows: Any) -> None:
    if not isinstance(rows, list):
        raise _strange(table.name, rows)
    columns, key, seen = fields_of(table), _key_of(table), set[tuple[Any, ...]]()
    for index, row in enumerate(rows):
        place = f"{table.name}[{index}]"
        _require_keys(place, row, columns.keys())
        for name, column in columns.items():
            if not _fits(column, row[name], row.get("key", "")):
                raise _strange(f"{place}.{name}", row[name])
        if (found := tuple(row[name] for name in key)) in seen:
            raise ValueError(f"{place} has the same {' and '.join(key)} as one before it")
        seen.add(found)


def _key_of(table: Table) -> list[str]:
    """What tells the rows of a study apart."""
    unique = next((each for each in table.constraints if isinstance(each, UniqueConstraint)), table.primary_key)
    names = [column.name for column in unique.columns if column.name != "study_id"]
    return ["number" if name == "trial_id" else name for name in names]


def _fits(column: Column[Any], value: Any, key: str) -> bool:
    """Whether every database takes it, to give it back."""
    kind = column.type
    if value is None:
        return bool(column.nullable) and column.name not in NEVER_NULL
    if isinstance(kind, sqlalchemy.Integer):
        return type(value) is int and value in INTEGERS
    if isinstance(kind, sqlalchemy.Float):
        return type(value) is float and abs(value) < float("inf")
    if not isinstance(value, str):
        return False
    if isinstance(kind, sqlalchemy.Enum):
        return value in kind.enums
    if isinstance(kind, sqlalchemy.DateTime):
        return _is_utc(value)
    if not _is_text(value) or len(value) > (getattr(kind, "length", None) or len(value)):
        return False
    return not column.name.endswith("_json") or can_be_read(column, value.encode(), key.encode())


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_utc(value: str) -> bool:
    try:
        found = datetime.fromisoformat(value)
        return found.tzinfo is None and found.replace(tzinfo=UTC).astimezone() is not None  # as Optuna reads it
    except (ValueError, OverflowError, OSError):
        return False


# What belongs together


def _require_trials(snapshot: Snapshot) -> None:
    for index, row in enumerate(snapshot.trials):
        if row["number"] != index:
            raise ValueError(f"trials[{index}] has number {row['number']}: they are to be counted from 0, without gaps")
    for place, row in chain.from_iterable(_places(snapshot, table) for table in known_tables().values()):
        if row.get("number", 0) >= max(len(snapshot.trials), 1):
            raise ValueError(f"{place} is of trial {row['number']}, which there is not")


def _require_attributes(snapshot: Snapshot) -> None:
    there = {row["key"] for row in snapshot.tables[STUDY_USER_ATTRIBUTES.name]}
    if lacking := {UID, FOLDER, IDENTITY} - there:
        raise ValueError(f"{STUDY_USER_ATTRIBUTES.name} has no {', '.join(sorted(lacking))}")
    for place, row in _places(snapshot, USER_ATTRIBUTES):
        if row["key"] in EARLIER and not 0 <= json.loads(row["value_json"]) < row["number"]:
            raise ValueError(f"{place} has trial {row['number']} go on with trial {row['value_json']}")


def _require_values(snapshot: Snapshot) -> None:
    """Of each trial one for each objective, or none while it is not complete."""
    objectives = {row["objective"] for row in snapshot.tables[DIRECTIONS.name]}
    if objectives != {*range(max(len(objectives), 1))}:
        raise ValueError(f"{DIRECTIONS.name} has the objectives {sorted(objectives)}: they are to be counted from 0")
    found = defaultdict[int, set[int]](set)
    for place, row in _places(snapshot, VALUES):
        _require_number(place, row["value"], row["value_type"])
        found[row["number"]].add(row["objective"])
    for place, row in _places(snapshot, INTERMEDIATE_VALUES):
        _require_number(place, row["intermediate_value"], row["intermediate_value_type"])
    for place, row in _places(snapshot, TRIALS):
        given = found[row["number"]]
        if given != objectives and (given or row["state"] == TrialState.COMPLETE.name):
            raise ValueError(f"{place} is {row['state']} with values of the objectives {sorted(given)}")


def _require_number(place: str, value: float | None, kind: str) -> None:
    if (value is not None) != (kind == "FINITE"):
        raise ValueError(f"{place} is {kind} with the value {value}")


def _require_parameter(place: str, row: Row) -> None:
    try:
        json_to_distribution(row["distribution_json"]).to_external_repr(row["param_value"])
    except Exception as error:  # whatever Optuna raises of what it did not write
        text = f"{row['param_value']} of {shortened(row['distribution_json'])}"
        raise ValueError(f"{place} is {text}") from error


def _require_fold(place: str, row: Row) -> None:
    try:
        [fold] = fold_ledger.read([SimpleNamespace(**row)])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{place} is {row['state']} with the facts {shortened(row['facts'])}") from error
    if fold.state is FoldState.COMPLETE and fold.facts is None:
        raise ValueError(f"{place} is complete without facts")
