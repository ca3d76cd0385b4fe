"""What has come of each fold of a trial, in the study's database: what is written as finished there is never run again.

A fold is written when it starts and when it ends, by who holds its trial, and one that is complete does not change any
more. Between its last epoch and that write its run directory holds the result, and whoever goes on with the trial
writes it. A trial that goes on with another has rows of its own for the folds it takes over, so the rows of a complete
trial are all of its folds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from hpo.criteria import Score
from hpo.ledger_tables import folds as table


class FoldState(StrEnum):
    """Where a fold is."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    """It left early: the trial is over, or goes on from a checkpoint."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a fold that was complete."""

    score: Score
    metrics: Mapping[str, float]
    epochs: int
    split_id: str | None
    computed: str
    """Of which configuration: another one's score is not this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldRow:
    """A fold of a trial."""

    fold: int
    state: FoldState
    attempt: int
    """Counted from 1, over all the trials that went on with one another."""
    trained_by: int
    """Number of the trial that trained it last."""
    run_dir: str
    facts: Facts | None = None
    """Of a complete one."""


def write(session: Session, trial_id: int, row: FoldRow) -> None:
    """Within a transaction of the trial's holder: keep `row`, unless that fold is complete already."""
    here = (table.c.trial_id == trial_id, table.c.fold == row.fold)
    if session.execute(select(table.c.state).where(*here)).scalar() == FoldState.COMPLETE:
        return
    session.execute(delete(table).where(*here))
    values = {**asdict(row), "facts": json.dumps(asdict(row.facts) if row.facts else None)}
    session.execute(insert(table).values(trial_id=trial_id, **values))


def forget(session: Session, trial_id: int) -> None:
    """Those of an earlier trial: SQLite gives the ids of deleted studies again."""
    session.execute(delete(table).where(table.c.trial_id == trial_id))


def read(rows: Iterable[Any]) -> list[FoldRow]:
    """What was written, of `rows` with the columns as attributes."""
    return [
        FoldRow(
            fold=row.fold,
            state=FoldState(row.state),
            attempt=row.attempt,
            trained_by=row.trained_by,
            run_dir=row.run_dir,
            facts=_facts(json.loads(row.facts)),
        )
        for row in rows
    ]


def _facts(values: dict[str, Any] | None) -> Facts | None:
    if values is None:
        return None
    score = values["score"]
    return Facts(**{**values, "score": tuple(score) if isinstance(score, list) else score})
