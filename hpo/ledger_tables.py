"""What we keep beside Optuna's tables in a study's database. Ids of trials are Optuna's."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, Text

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
