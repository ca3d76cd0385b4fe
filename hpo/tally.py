"""What the trials of a study have come to, kept up to date by reading what changed since it was last asked.

A sweep asks several times per trial. ``Study.get_trials`` reads six tables and sorts all trials each time, so that a
trial would cost more the more there were. A tally asks one question of the database, about the trials that were not
over yet and those that are new, and reads the values of a trial once: when it is over, they do not change any more.
Optuna's tables are read, never written.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
from sqlalchemy.orm import aliased

from hpo.budget import Told
from hpo.patience import Patience
from hpo.stopping.dominance import dominates

INTERRUPTED, CONTINUES, REVIVES = "hpo:interrupted", "hpo:continues", "hpo:revives"
"""Trial attributes: it was cut short and does not count; the trial that it goes on with, the first one if that went on
itself; the stopped trial that it takes up again, and whose place it takes."""
RETRIES, LOSSES = "hpo:retries", "hpo:losses"
"""How often it failed before and was tried again; how often in a row its process was lost, and how many evaluations it
had reported by then."""
MICRO_BATCH, NOT_BEFORE = "hpo:micro_batch", "hpo:not_before"
"""The most samples that a rank of it may work on at a time, after it ran out of memory with more; the time of day, in
seconds since 1970, before which it does not start."""
UNTIL, PAUSED = "hpo:until", "hpo:paused"
"""Epochs of each fold after which a trial that was promoted is paused again; it was paused at a rung, and may go on."""
SAMPLED, FOLD_SCORES, AUDIT = "hpo:sampled", "hpo:fold_scores", "hpo:audit"
"""Its complete parameters; its folds' scores by number, null where one did not end; why it would have been stopped, and
the value to beat then, a list with several objectives, if it ran on all the same."""
VIOLATED, ESTIMATE = "hpo:violated", "hpo:estimate"
"""The constraints it violates, and by how much; with several objectives, what a stopped trial is estimated to have come
to, one value each (with one, that is its last reported value)."""
DEVICE_SECONDS = "hpo:device_seconds"
"""Trial attribute: what all attempts of its folds took so far, in seconds times devices."""
AT_ONCE = 1000
"""Trials whose values are asked for in one statement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """What a completed or stopped trial has reported."""

    number: int
    root: int
    """The first of the trials that it goes on with, or itself."""
    params: Mapping[str, Any]
    values: Mapping[int, float]
    """By step."""
    fold_scores: Sequence[Any]
    """By fold; None for one that did not run to its end, or that was not begun. A list where there are several
    objectives."""
    is_feasible: bool = True
    """Whether it violates no constraint."""
    is_paused: bool = False
    """At a rung, and may be promoted."""


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
        self._storage, self._study_id = study._storage, study._study_id
        self._rows = partial(_rows, backend)
        self._signs = [1.0 if direction is StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
        self._maximize = self._signs == [1.0]
        self._lock = threading.RLock()
        self._changed = _changed_trials(self._study_id)
        self._last_id, self._num_trials = -1, 0
        self._open: dict[int, tuple[int, TrialState, bool]] = {}
        """Trials that can still change: number, state and whether interrupted, by id."""
        self._revivals: dict[int, int] = {}
        """Of trials that take up a stopped one, whose place they take: the number of that one, by number."""
        self._interrupted: set[int] = set()
        """Numbers of those that are over and do not count."""
        self._over: Counter[TrialState] = Counter()
        """Those that are over and count, by state."""
        self._unread_values: list[int] = []
        self._unread_curves: dict[int, int] = {}
        """Numbers by id."""
        self._reported: list[Reported] = []
        self._unread_seconds: list[int] = []
        self._values: dict[int, float] = {}
        """Of the completed trials that violate no constraint, by id."""
        self._ended: dict[int, tuple[datetime, int]] = {}
        """When the trials that count ended, and their ids, by number."""
        self._best: float | None = None
        self._front: dict[int, tuple[float, ...]] = {}
        """With several objectives: values, larger is better, of the trials that no other dominates, by number."""
        self._device_s = 0.0
        """Of the trials that are over."""
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
            end = self._num_trials if before is None else min(before, self._num_trials)
            waits = {number for number, state, is_cut in self._open.values() if is_cut or state is TrialState.WAITING}
            return end - sum(number < end for number in {*self._interrupted, *waits, *self._revivals})

    def taken_up(self) -> set[int]:
        """Numbers of the stopped trials that another one takes up, or has, or is queued to."""
        with self._lock:
            self._read()
            cut_short = self.interrupted()
            return {stopped for number, stopped in self._revivals.items() if number not in cut_short}

    def given_up(self) -> set[int]:
        """Numbers of the stopped trials whose successor has failed, or ended without a value."""
        with self._lock:
            in_vain = self._ended.keys() - {each.number for each in self.reported()}
            return {stopped for number, stopped in self._revivals.items() if number in in_vain}

    def has_new(self) -> bool:
        """Whether a trial runs that takes up no other."""
        with self._lock:
            self._read()
            runs = (
                number
                for number, state, is_cut in self._open.values()
                if (state, is_cut) == (TrialState.RUNNING, False)
            )
            return any(number not in self._revivals for number in runs)

    def num_to_revive(self) -> int:
        """Trials that wait and take up a stopped one."""
        with self._lock:
            self._read()
            waits = {number for number, state, _ in self._open.values() if state is TrialState.WAITING}
            return len(waits & self._revivals.keys())

    def running(self) -> list[int]:
        """The ids of the RUNNING trials that were not interrupted, by their numbers."""
        with self._lock:
            self._read()
            opened = sorted((number, trial_id) for trial_id, (number, _, _) in self._open.items())
            return [trial_id for _, trial_id in opened if self._open[trial_id][1:] == (TrialState.RUNNING, False)]

    def best_value(self) -> float | None:
        """Value of the best completed trial, if there is one; a trial that violates a constraint is none. Always None
        with several objectives."""
        with self._lock:
            self._read_values()
            return self._best

    def front(self) -> list[int]:
        """With several objectives: numbers of the completed trials that no other dominates; a trial that violates a
        constraint is none. Else empty."""
        with self._lock:
            self._read_values()
            return sorted(self._front)

    def told(self) -> list[Told]:
        """The trials that were told and not interrupted, in the order in which they ended. The value of a paused one is
        estimated, and those before the first complete one are left out; one that violates a constraint has no value."""
        with self._lock:
            self._read_values()
            paused = {each.number: each for each in self.reported() if each.is_paused}
            ended = sorted((*ended, number) for number, ended in self._ended.items())
            complete = (row for row, (_, trial_id, _) in enumerate(ended) if trial_id in self._values)
            first = next(complete, len(ended))
            told = [each for row, each in enumerate(ended) if row >= first or each[-1] not in paused]
            estimates = {number: each.values[max(each.values)] for number, each in paused.items() if each.is_feasible}
            return [Told(trial_id, self._values.get(trial_id, estimates.get(number))) for _, trial_id, number in told]

    def device_seconds(self) -> float:
        """What all trials took, those that were interrupted and those that run included."""
        with self._lock:
            self._read()
            self._device_s += self._seconds_of(self._unread_seconds)
            self._unread_seconds = []
            return self._device_s + self._seconds_of([*self._open])

    def reported(self) -> Sequence[Reported]:
        """Each completed or pruned trial that reported something, in the order they were found; it only grows. With
        several objectives trials report nothing in between, and those are there of which a fold has ended."""
        table = TrialIntermediateValueModel
        with self._lock:
            self._read()
            chosen = select(table.trial_id, table.step, table.intermediate_value, table.intermediate_value_type)
            rows = list(self._of([*self._unread_curves], chosen.order_by(table.trial_id), table.trial_id))
            attributes, to_value = self._attributes_of([*self._unread_curves]), table.stored_repr_to_intermediate_value
            curves = {
                trial_id: {step: to_value(value, kind) for _, step, value, kind in reported}
                for trial_id, reported in groupby(rows, key=lambda row: row[0])
            }
            if self._signs[1:]:
                curves = {
                    trial_id: {} for trial_id in sorted(attributes) if any(attributes[trial_id].get(FOLD_SCORES, ()))
                }
            for trial_id, values in curves.items():
                self._reported.append(_reported(self._unread_curves[trial_id], values, attributes[trial_id]))
            self._unread_curves = {}
            return self._reported

    def _attributes_of(self, ids: list[int]) -> defaultdict[int, dict[str, Any]]:
        """CONTINUES, SAMPLED, FOLD_SCORES, PAUSED and VIOLATED of these trials, by id."""
        table, found = TrialUserAttributeModel, defaultdict[int, dict[str, Any]](dict)
        chosen = select(table.trial_id, table.key, table.value_json)
        chosen = chosen.where(table.key.in_((CONTINUES, SAMPLED, FOLD_SCORES, PAUSED, VIOLATED)))
        for trial_id, key, value in self._of(ids, chosen, table.trial_id):
            found[trial_id][key] = json.loads(value)
        return found

    def attributes(self, key: str) -> list[tuple[int, Any]]:
        """Number and value of an attribute, of all trials that have it, as they are now."""
        return [(number, json.loads(value)) for number, value in self._rows(_attributes(self._study_id, key))]

    def first(self, key: str) -> Any:
        """The attribute of the first trial that has it, null left out. What was found once is not asked for again."""
        if key not in self._first:
            for _, value in self._rows(_attributes(self._study_id, key).limit(1)):
                self._first[key] = json.loads(value)
        return self._first.get(key)

    def _read(self) -> None:
        asked = {"from": min(self._open, default=self._last_id), "last": self._last_id, "open": [*self._open]}
        for trial_id, number, state, ended, interrupted, revived in self._rows(self._changed, asked):
            self._num_trials += trial_id > self._last_id
            self._last_id = max(self._last_id, trial_id)
            self._open.pop(trial_id, None)
            if revived is not None:
                self._revivals[number] = json.loads(revived)
            if not state.is_finished():
                self._open[trial_id] = (number, state, interrupted is not None)
            elif interrupted is not None:
                self._interrupted.add(number)
            else:
                self._over[state] += 1
                self._over[TrialState.PRUNED] -= revived is not None  # the one that it took up
                self._ended[number] = (ended or datetime.min, trial_id)
                if revived is not None:
                    self._ended.pop(self._revivals[number], None)
            if state.is_finished():
                self._unread_seconds.append(trial_id)
            if state is TrialState.COMPLETE:
                self._unread_values.append(trial_id)
            if state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._unread_curves[trial_id] = number

    def _read_values(self) -> None:
        """Of the trials that were completed since the last time."""
        self._read()
        if self._signs[1:]:
            return self._read_front()
        table = TrialValueModel
        chosen = select(table.trial_id, table.value, table.value_type)
        rows = list(self._of(self._unread_values, chosen, table.trial_id))
        violated = self._violated(self._unread_values)
        self._unread_values = []
        new = [(table.stored_repr_to_value(*row[1:]), row[0]) for row in rows if row[0] not in violated]
        self._values |= {trial_id: value for value, trial_id in new}
        for value, trial_id in sorted(new, reverse=self._maximize):
            if self._best is not None and not (value > self._best if self._maximize else value < self._best):
                break
            if all(violation <= 0.0 for violation in self._storage.get_trial(trial_id).constraints.values()):
                self._best = value

    def _violated(self, ids: list[int]) -> set[int]:
        """Those of these trials that violate a constraint of the study."""
        attribute = TrialUserAttributeModel
        chosen = select(attribute.trial_id).where(attribute.key == VIOLATED)
        return {trial_id for (trial_id,) in self._of(ids, chosen, attribute.trial_id)}

    def _read_front(self) -> None:
        """The front with the trials that were completed since the last time."""
        for trial in map(self._storage.get_trial, self._unread_values):
            values = tuple(sign * value for sign, value in zip(self._signs, trial.values, strict=True))
            is_feasible = all(violation <= 0.0 for violation in trial.constraints.values())
            if is_feasible and not any(dominates(each, values) for each in self._front.values()):
                self._front = {number: each for number, each in self._front.items() if not dominates(values, each)}
                self._front[trial.number] = values
        self._unread_values = []

    def _seconds_of(self, ids: list[int]) -> float:
        attribute = TrialUserAttributeModel
        chosen = select(attribute.value_json).where(attribute.key == DEVICE_SECONDS)
        return sum(float(value) for (value,) in self._of(ids, chosen, attribute.trial_id))

    def _of(self, ids: list[int], chosen: sqlalchemy.Select[Any], column: Any) -> Iterator[Any]:
        """The rows of `chosen` that belong to the trials `ids`."""
        if not ids:
            return
        for start in range(0, len(ids), AT_ONCE):
            yield from self._rows(chosen.where(column.in_(ids[start : start + AT_ONCE])))


def _rows(storage: RDBStorage, statement: sqlalchemy.Select[Any], asked: dict[str, Any] | None = None) -> Sequence[Any]:
    """All that `statement` finds, however long that takes in our own storage."""

    def read() -> Sequence[Any]:
        with storage.engine.connect() as connection:
            return connection.execute(statement, asked or {}).all()

    patience: Patience | None = getattr(storage, "patience", None)
    return read() if patience is None else patience(read)


def _reported(number: int, values: Mapping[int, float], found: Mapping[str, Any]) -> Reported:
    """Of a trial with the attributes `found`."""
    return Reported(
        number=number,
        root=found.get(CONTINUES, number),
        params=found.get(SAMPLED, {}),
        values=values,
        fold_scores=found.get(FOLD_SCORES, []),
        is_feasible=not found.get(VIOLATED),
        is_paused=PAUSED in found,
    )


def _changed_trials(study_id: int) -> sqlalchemy.Select[Any]:
    """The trials of the ids `open` and all after `last`; none is below `from`, which spares SQLite its index."""
    attribute, revival = aliased(TrialUserAttributeModel), aliased(TrialUserAttributeModel)
    is_interrupted = and_(attribute.trial_id == TrialModel.trial_id, attribute.key == INTERRUPTED)
    is_revival = and_(revival.trial_id == TrialModel.trial_id, revival.key == REVIVES)
    is_new, is_open = (
        TrialModel.trial_id > bindparam("last"),
        TrialModel.trial_id.in_(bindparam("open", expanding=True)),
    )
    return (
        select(
            TrialModel.trial_id,
            TrialModel.number,
            TrialModel.state,
            TrialModel._datetime_complete_utc,
            attribute.key,
            revival.value_json,
        )
        .outerjoin(attribute, is_interrupted)
        .outerjoin(revival, is_revival)
        .where(TrialModel.study_id == study_id, TrialModel.trial_id >= bindparam("from"), or_(is_new, is_open))
        .order_by(TrialModel.trial_id)
    )


def _attributes(study_id: int, key: str) -> sqlalchemy.Select[Any]:
    """Number and JSON of an attribute that is not null, of all trials."""
    attribute = TrialUserAttributeModel
    chosen = select(TrialModel.number, attribute.value_json).join(TrialModel, TrialModel.trial_id == attribute.trial_id)
    is_asked = (TrialModel.study_id == study_id, attribute.key == key, attribute.value_json != "null")
    return chosen.where(*is_asked).order_by(TrialModel.trial_id)
