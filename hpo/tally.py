"""What the trials of a study have come to, kept up to date by reading what changed since it was last asked.

A sweep asks several times per trial. ``Study.get_trials`` reads six tables and sorts all trials each time, so that a
trial would cost more the more there were. A tally asks one question of the database, about the trials that were not
over yet and those that are new, and reads the values of a trial once: when it is over, they do not change any more.
Optuna's tables are read, never written.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import and_, bindparam, or_, select

INTERRUPTED = "hpo:interrupted"
"""Trial attribute: it was cut short and does not count."""
AT_ONCE = 1000
"""Trials whose values are asked for in one statement."""

_tallies: WeakKeyDictionary[optuna.Study, Tally] = WeakKeyDictionary()


def tally_of(study: optuna.Study) -> Tally:
    """The tally of `study`, the same one each time."""
    if study not in _tallies:
        _tallies[study] = Tally(study)
    return _tallies[study]


class Tally:
    """Counts, values and curves of the trials of one study. Every method reads what changed first."""

    def __init__(self, study: optuna.Study) -> None:
        backend = getattr(study._storage, "_backend", study._storage)
        if not isinstance(backend, RDBStorage):
            raise TypeError(f"a tally needs a study in a database, not in {type(backend).__name__}")
        self._storage, self._engine, self._study_id = study._storage, backend.engine, study._study_id
        self._maximize = study.direction is StudyDirection.MAXIMIZE
        self._lock = threading.RLock()
        self._changed = _changed_trials(self._study_id)
        self._last_id = -1
        self._open: dict[int, tuple[int, TrialState, bool]] = {}
        """Trials that can still change: number, state and whether interrupted, by id."""
        self._interrupted: set[int] = set()
        """Numbers of those that are over and do not count."""
        self._over: Counter[TrialState] = Counter()
        """Those that are over and count, by state."""
        self._unread_values: list[int] = []
        self._unread_curves: list[int] = []
        self._curves: list[Mapping[int, float]] = []
        self._best: float | None = None
        self._first: dict[str, Any] = {}

    def states(self) -> Counter[TrialState]:
        """Trials by state, those that were interrupted left out."""
        with self._lock:
            self._read()
            return self._over + Counter(state for _, state, is_cut in self._open.values() if not is_cut)

    def interrupted(self) -> set[int]:
        """Numbers of the trials that were cut short."""
        with self._lock:
            self._read()
            return self._interrupted | {number for number, _, is_cut in self._open.values() if is_cut}

    def num_finished(self) -> int:
        """Trials that were told and not interrupted."""
        with self._lock:
            self._read()
            return self._over.total()

    def places_taken(self, before: int | None = None) -> int:
        """Trials that are evaluated or were, of those numbered below `before`."""
        with self._lock:
            self._read()
            num_trials = self._over.total() + len(self._interrupted) + len(self._open)
            end = num_trials if before is None else min(before, num_trials)
            waits = (number for number, state, is_cut in self._open.values() if is_cut or state is TrialState.WAITING)
            return end - sum(number < end for number in (*self._interrupted, *waits))

    def running(self) -> list[int]:
        """The ids of the RUNNING trials that were not interrupted, by their numbers."""
        with self._lock:
            self._read()
            opened = sorted((number, trial_id) for trial_id, (number, _, _) in self._open.items())
            return [trial_id for _, trial_id in opened if self._open[trial_id][1:] == (TrialState.RUNNING, False)]

    def best_value(self) -> float | None:
        """Value of the best completed trial, if there is one; a trial that violates a constraint is none."""
        table = TrialValueModel
        with self._lock:
            self._read()
            chosen = select(table.trial_id, table.value, table.value_type)
            rows = list(self._of(self._unread_values, chosen, table.trial_id))
            self._unread_values = []
            new = [(table.stored_repr_to_value(*row[1:]), row[0]) for row in rows]
            for value, trial_id in sorted(new, reverse=self._maximize):
                if self._best is not None and not (value > self._best if self._maximize else value < self._best):
                    break
                if all(violation <= 0.0 for violation in self._storage.get_trial(trial_id).constraints.values()):
                    self._best = value
            return self._best

    def curves(self) -> Sequence[Mapping[int, float]]:
        """Reported values by step of each completed or pruned trial, in the order they were found; it only grows."""
        table = TrialIntermediateValueModel
        with self._lock:
            self._read()
            chosen = select(table.trial_id, table.step, table.intermediate_value, table.intermediate_value_type)
            rows = list(self._of(self._unread_curves, chosen.order_by(table.trial_id), table.trial_id))
            self._unread_curves = []
            for _, reported in groupby(rows, key=lambda row: row[0]):
                to_value = table.stored_repr_to_intermediate_value
                self._curves.append({step: to_value(value, kind) for _, step, value, kind in reported})
            return self._curves

    def attributes(self, key: str) -> list[tuple[int, Any]]:
        """Number and value of an attribute, of all trials that have it, as they are now."""
        with self._engine.connect() as connection:
            found = connection.execute(_attributes(self._study_id, key)).all()
        return [(number, json.loads(value)) for number, value in found]

    def first(self, key: str) -> Any:
        """The attribute of the first trial that has it, null left out. What was found once is not asked for again."""
        if key not in self._first:
            with self._engine.connect() as connection:
                found = connection.execute(_attributes(self._study_id, key).limit(1)).first()
            if found is None:
                return None
            self._first[key] = json.loads(found[1])
        return self._first[key]

    def _read(self) -> None:
        asked = {"from": min(self._open, default=self._last_id), "last": self._last_id, "open": [*self._open]}
        with self._engine.connect() as connection:
            rows = connection.execute(self._changed, asked).all()
        for trial_id, number, state, interrupted in rows:
            self._last_id = max(self._last_id, trial_id)
            self._open.pop(trial_id, None)
            if not state.is_finished():
                self._open[trial_id] = (number, state, interrupted is not None)
            elif interrupted is not None:
                self._interrupted.add(number)
            else:
                self._over[state] += 1
            if state is TrialState.COMPLETE:
                self._unread_values.append(trial_id)
            if state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._unread_curves.append(trial_id)

    def _of(self, ids: list[int], chosen: sqlalchemy.Select[Any], column: Any) -> Iterator[Any]:
        """The rows of `chosen` that belong to the trials `ids`."""
        if not ids:
            return
        with self._engine.connect() as connection:
            for start in range(0, len(ids), AT_ONCE):
                yield from connection.execute(chosen.where(column.in_(ids[start : start + AT_ONCE])))


def _changed_trials(study_id: int) -> sqlalchemy.Select[Any]:
    """The trials of the ids `open` and all after `last`; none is below `from`, which spares SQLite its index."""
    attribute = TrialUserAttributeModel
    is_interrupted = and_(attribute.trial_id == TrialModel.trial_id, attribute.key == INTERRUPTED)
    is_new, is_open = (
        TrialModel.trial_id > bindparam("last"),
        TrialModel.trial_id.in_(bindparam("open", expanding=True)),
    )
    return (
        select(TrialModel.trial_id, TrialModel.number, TrialModel.state, attribute.key)
        .outerjoin(attribute, is_interrupted)
        .where(TrialModel.study_id == study_id, TrialModel.trial_id >= bindparam("from"), or_(is_new, is_open))
        .order_by(TrialModel.trial_id)
    )


def _attributes(study_id: int, key: str) -> sqlalchemy.Select[Any]:
    """Number and JSON of an attribute that is not null, of all trials."""
    attribute = TrialUserAttributeModel
    chosen = select(TrialModel.number, attribute.value_json).join(TrialModel, TrialModel.trial_id == attribute.trial_id)
    is_asked = (TrialModel.study_id == study_id, attribute.key == key, attribute.value_json != "null")
    return chosen.where(*is_asked).order_by(TrialModel.trial_id)
