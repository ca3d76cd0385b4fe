"""What we keep beside Optuna's tables in a study's database. Ids of trials are Optuna's."""

from __future__ import annotations

from sqlalchemy import Column, Engine, Float, Integer, MetaData, String, Table, Text, inspect

tables = MetaData()
leases = Table(
    "hpo_leases",
    tables,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("since", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False),
)
"""Who evaluates a RUNNING trial, a row each."""
folds = Table(
    "hpo_folds",
    tables,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("fold", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("trained_by", Integer, nullable=False),
    Column("run_dir", Text, nullable=False),
    Column("facts", Text, nullable=False),
)
"""What has come of each fold of each trial that was begun."""


def create(engine: Engine) -> None:
    """Make those that are not there. Raises RuntimeError where another version of hpo has made them otherwise."""
    tables.create_all(engine)
    for table in tables.sorted_tables:
        found = {column["name"] for column in inspect(engine).get_columns(table.name)}
        if found != set(table.columns.keys()):
            differ = ", ".join(sorted(found ^ set(table.columns.keys())))
            raise RuntimeError(
                f"another version of hpo made its table {table.name} (they differ in: {differ}); go on with that"
                " version, or use it to hpo export the study"
            )
