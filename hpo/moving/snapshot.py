"""A study in its database as plain values, taken at one moment, and put into another database.

A Snapshot has the rows of Optuna's tables, and of ours that hold facts, as they are: dates in UTC, numbers to the bit.
Its rows name a trial by its number, since ids are each database's own. Leases are no facts and stay behind.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import TrialState, create_trial
from sqlalchemy import Column, Connection, Table, delete, insert, select

from hpo.ledger import SUCCEEDS, LedgerStorage
from hpo.ledger_tables import folds
from hpo.study import successor_of
from hpo.tally import INTERRUPTED

Row = dict[str, Any]

STUDIES: Table = models.StudyModel.__table__
TRIALS: Table = models.TrialModel.__table__
STUDY_USER_ATTRIBUTES: Table = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM_ATTRIBUTES: Table = models.StudySystemAttributeModel.__table__
USER_ATTRIBUTES: Table = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES: Table = models.TrialSystemAttributeModel.__table__

DIRECTIONS: Table = models.StudyDirectionModel.__table__
PARAMS: Table = models.TrialParamModel.__table__
VALUES: Table = models.TrialValueModel.__table__
INTERMEDIATE_VALUES: Table = models.TrialIntermediateValueModel.__table__

OF_A_STUDY: tuple[Table, ...] = (DIRECTIONS, STUDY_USER_ATTRIBUTES, STUDY_SYSTEM_ATTRIBUTES)
OF_A_TRIAL: tuple[Table, ...] = (USER_ATTRIBUTES, SYSTEM_ATTRIBUTES, PARAMS, VALUES, INTERMEDIATE_VALUES, folds)
"""What is known of a trial, by its `trial_id`. Another table of such facts only needs to be named here."""


@dataclass(kw_only=True, slots=True)
class Snapshot:
    """The rows of one study, by table."""

    study: str
    tables: dict[str, list[Row]]

    @property
    def trials(self) -> list[Row]:
        """By number."""
        return self.tables[TRIALS.name]

    def attributes(self, table: Table = USER_ATTRIBUTES) -> dict[int, dict[str, Any]]:
        """Of each trial that has any, by number."""
        found = defaultdict[int, dict[str, Any]](dict)
        for row in self.tables[table.name]:
            found[row["number"]][row["key"]] = json.loads(row["value_json"])
        return found


def known_tables() -> dict[str, Table]:
    """Those of a snapshot, by name."""
    return {table.name: table for table in (*OF_A_STUDY, TRIALS, *OF_A_TRIAL)}


def fields_of(table: Table) -> dict[str, Column[Any]]:
    """What its rows say in a snapshot."""
    number = {TRIALS.c.number.name: TRIALS.c.number} if table in OF_A_TRIAL else {}
    return number | {column.name: column for column in _facts(table)}


def take(storage: LedgerStorage, name: str) -> Snapshot:
    """The study of this name as it is now, while others go on with it."""
    study_id = storage.get_study_id_from_name(name)
    is_its = TRIALS.c.study_id == study_id
    tables: dict[str, list[Row]] = {}
    with _one_moment(storage.engine) as connection:
        for table in OF_A_STUDY:
            chosen = select(*_facts(table)).where(table.c.study_id == study_id).order_by(*table.primary_key.columns)
            tables[table.name] = _rows(connection, chosen)
        chosen = select(*_facts(TRIALS)).where(is_its).order_by(TRIALS.c.number)
        tables[TRIALS.name] = _rows(connection, chosen)
        for table in OF_A_TRIAL:
            chosen = select(TRIALS.c.number, *_facts(table)).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
            chosen = chosen.where(is_its).order_by(TRIALS.c.number, *table.primary_key.columns)
            tables[table.name] = _rows(connection, chosen)
    return Snapshot(study=name, tables=tables)


@contextmanager
def _one_moment(engine: sqlalchemy.Engine) -> Iterator[Connection]:
    """A transaction in which nothing changes."""
    with engine.connect() as connection:
        if engine.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # the driver would only begin one before it writes
            yield connection
        else:
            yield connection.execution_options(isolation_level="REPEATABLE READ")


def _facts(table: Table) -> list[Column[Any]]:
    """Its columns but ids."""
    key = table.primary_key.columns
    is_id = {"trial_id", "study_id", *([column.name for column in key] if len(key) == 1 else [])}
    return [column for column in table.columns if column.name not in is_id]


def _rows(connection: Connection, chosen: sqlalchemy.Select[Any]) -> list[Row]:
    found = connection.execute(chosen)
    return [dict(zip(found.keys(), map(_plain, row), strict=True)) for row in found]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    return value.isoformat() if isinstance(value, datetime) else value


def _stored(column: Column[Any], value: Any) -> Any:
    if value is not None and isinstance(column.type, sqlalchemy.Enum):
        return getattr(column.type.enum_class, value)
    if value is not None and isinstance(column.type, sqlalchemy.DateTime):
        return datetime.fromisoformat(value)
    return value


def settle(snapshot: Snapshot) -> None:
    """End the RUNNING trials as interrupted and queue a successor of each, as ``recover`` would: nobody runs a copy."""
    user, system = snapshot.attributes(), snapshot.attributes(SYSTEM_ATTRIBUTES)
    succeeded = {attributes.get(SUCCEEDS) for attributes in user.values()}
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    for row in [row for row in snapshot.trials if row["state"] == TrialState.RUNNING.name]:
        number = row["number"]
        row |= {"state": TrialState.FAIL.name, "datetime_complete": now}
        _set(snapshot, USER_ATTRIBUTES, number, INTERRUPTED, True)
        trial = create_trial(state=TrialState.FAIL, user_attrs=user[number], system_attrs=system[number])
        trial.number = number
        if number in succeeded or (successor := successor_of(trial)) is None:
            continue
        following = len(snapshot.trials)
        snapshot.trials.append({**dict.fromkeys(row), "number": following, "state": successor.state.name})
        for table, attributes in (
            (USER_ATTRIBUTES, {**successor.user_attrs, SUCCEEDS: number}),
            (SYSTEM_ATTRIBUTES, successor.system_attrs),
        ):
            for key, value in attributes.items():
                _set(snapshot, table, following, key, value)


def _set(snapshot: Snapshot, table: Table, number: int, key: str, value: Any) -> None:
    """An attribute of a trial, which it has not yet."""
    snapshot.tables[table.name].append({"number": number, "key": key, "value_json": json.dumps(value)})


def put(connection: Connection, snapshot: Snapshot) -> None:
    """Make the study in another database, in the transaction of `connection`.

    Raises IntegrityError where there is one of its name.
    """
    made = connection.execute(insert(STUDIES).values(study_name=snapshot.study).returning(STUDIES.c.study_id))
    study_id = made.scalar_one()
    for table in OF_A_STUDY:
        rows = [{"study_id": study_id, **_values(table, row)} for row in snapshot.tables[table.name]]
        _insert(connection, table, rows)
    ids = _put_trials(connection, study_id, snapshot.trials)
    for table in OF_A_TRIAL:
        rows = [{"trial_id": ids[row["number"]], **_values(table, row)} for row in snapshot.tables[table.name]]
        ours = select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        connection.execute(delete(table).where(table.c.trial_id.in_(ours)))  # SQLite gives the ids of old trials again
        _insert(connection, table, rows)


def _put_trials(connection: Connection, study_id: int, trials: Sequence[Row]) -> dict[int, int]:
    """Their ids by number; they grow with it, as Optuna relies on."""
    rows = [{"study_id": study_id, **_values(TRIALS, row)} for row in trials]
    if not rows:
        return {}
    made = connection.execute(insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True), rows)
    ids = [*made.scalars()]
    assert ids == sorted(ids)
    return {row["number"]: trial_id for row, trial_id in zip(rows, ids, strict=True)}


def _values(table: Table, row: Row) -> Row:
    return {column.name: _stored(column, row[column.name]) for column in _facts(table)}


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    if rows:
        connection.execute(insert(table), rows)
