"""Who evaluates each trial, until when that is believed, and which trial goes on with one that was cut short.

Each evaluation is a trial of Optuna's. One that is cut short ends, and a successor goes on in its place:

    WAITING --ask--> RUNNING, leased --renew--> RUNNING, leased --tell--> COMPLETE | PRUNED | FAIL
                          |  by its holder; by anyone when the lease has expired or the holder is dead
                          +--hand over--> FAIL, interrupted, and its successor WAITING

Each arrow is one transaction, so a kill at any moment leaves a trial before it or behind it. Who comes second finds the
trial in another state and changes nothing: a trial has one holder at a time, and one successor for ever. A holder that
comes back from the dead can tell nothing, since its trial is over. Time is the database's.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import psutil
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Float, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hpo import fold_ledger
from hpo.fold_ledger import FoldRow
from hpo.ledger_tables import create, folds, leases
from hpo.patience import Patience
from hpo.tally import INTERRUPTED

LEASE_S = 180.0
"""A holder that is silent for so long loses its trials."""
SUCCEEDS = "hpo:succeeds"
"""Attribute of a trial: the number of the one that it goes on with."""
READINGS_S = 2.0
"""Two readings of when a process began may differ by this much: the kernel rounds when it was started itself."""
DATABASE_TIME = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}
"""Seconds since 1970, by the databases whose locks this relies on."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process: where it runs, its id there, and when it began, since ids are used again."""

    host: str
    """Of `this_host`."""
    pid: int
    since: float
    """Seconds after the machine was started: when the clock is set, the time of day moves."""

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have ended. Of other hosts nothing is known."""
        if self.host != this_host():
            return False
        try:
            process = psutil.Process(self.pid)
            is_same = abs(_began(process) - self.since) < READINGS_S
            return not is_same or process.status() == psutil.STATUS_ZOMBIE  # dead, but nobody waited for it
        except psutil.NoSuchProcess:
            return True


NOBODY = Holder("", 0, 0.0)
"""Holds the trials that something else than a sweep asked for."""


@functools.cache
def this_host() -> str:
    """The host's name, and what tells machines and containers of that name from each other, and each start of them."""
    told_apart = []
    with suppress(OSError):  # not Linux
        told_apart.append(Path("/proc/sys/kernel/random/boot_id").read_text()[:8])
        told_apart.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "/".join([socket.gethostname(), *told_apart])


@functools.cache
def this_process() -> Holder:
    """Ourselves."""
    pid = os.getpid()
    return Holder(this_host(), pid, _began(psutil.Process(pid)))


def _began(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A RUNNING trial and its lease."""

    trial_id: int
    number: int
    holder: Holder
    expires: float
    """Seconds since 1970."""
    is_expired: bool

    @property
    def is_lost(self) -> bool:
        """Whether anyone may end it."""
        return self.is_expired or self.holder.is_dead

    @property
    def why_lost(self) -> str:
        """Why, of one that is lost."""
        pid, host = self.holder.pid, self.holder.host.partition("/")[0]
        if self.holder.is_dead:
            return f"process {pid} is dead"
        return f"process {pid} of {host} has been silent for too long" if host else "no process ever said so"


Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
Method = Callable[Concatenate["LedgerStorage", Parameters], Value]


def _patient(method: Method[Parameters, Value]) -> Method[Parameters, Value]:
    """`method`, a transaction of its own, tried again while the database is away."""

    @functools.wraps(method)
    def tried_again(self: LedgerStorage, /, *args: Parameters.args, **named: Parameters.kwargs) -> Value:
        return self.patience(lambda: method(self, *args, **named))

    return tried_again


class LedgerStorage(RDBStorage):
    """Optuna's storage in which each RUNNING trial has a lease, and each fold a row, in tables of their own.

    Any thread may call.
    """

    def __init__(
        self,
        url: str,
        engine_kwargs: dict[str, Any] | None = None,
        *,
        holder: Holder | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`holder` and `clock` are this process and the database's time, unless a test says otherwise."""
        self.patience = Patience()
        """With a database that is away."""
        super().__init__(url, engine_kwargs)
        if self.engine.name not in DATABASE_TIME:
            raise RuntimeError(f"{self.engine.name} is none of {', '.join(DATABASE_TIME)}")
        create(self.engine)
        self._holder, self._clock = holder, clock

    @property
    def holder(self) -> Holder:
        """Of the trials that are asked for here."""
        return self._holder or this_process()

    @_patient
    def held(self, study_id: int) -> list[Held]:
        """The RUNNING trials of a study, by number. One without a lease gets one that nobody holds."""
        trial, is_leased = models.TrialModel, leases.c.trial_id == models.TrialModel.trial_id
        lease = (leases.c.host, leases.c.pid, leases.c.since, leases.c.expires, leases.c.expires <= self._now())
        chosen = select(trial.trial_id, trial.number, *lease).outerjoin(leases, is_leased).order_by(trial.number)
        chosen = chosen.where(trial.study_id == study_id, trial.state == TrialState.RUNNING)
        with self.engine.connect() as connection:
            rows = connection.execute(chosen).all()
        if without := [row.trial_id for row in rows if row.host is None]:
            self._lease_to_nobody(without)
            return self.held(study_id)
        return [
            Held(trial_id=row[0], number=row[1], holder=Holder(*row[2:5]), expires=row[5], is_expired=bool(row[6]))
            for row in rows
        ]

    def _lease_to_nobody(self, trial_ids: Iterable[int]) -> None:
        host, pid, since = astuple(NOBODY)
        common = {"host": host, "pid": pid, "since": since, "expires": self._now() + LEASE_S}
        for trial_id in trial_ids:
            with suppress(IntegrityError), self.engine.begin() as connection:  # another process was first
                connection.execute(insert(leases).values(trial_id=trial_id, **common))

    @_patient
    def renew(self, trial_ids: Iterable[int]) -> set[int]:
        """Hold these trials for another LEASE_S. Returns those that are held; the others are over, for us."""
        trial = models.TrialModel
        running = select(trial.trial_id).where(trial.trial_id.in_([*trial_ids]), trial.state == TrialState.RUNNING)
        ours = (leases.c.trial_id.in_(running), *self._is_ours())
        with self.engine.begin() as connection:
            connection.execute(update(leases).where(*ours).values(expires=self._now() + LEASE_S))
            return set(connection.scalars(select(leases.c.trial_id).where(*ours)))

    @_patient
    def hand_over(
        self,
        trial_id: int,
        successor: FrozenTrial | None,
        *,
        seen: Held | None = None,
        attributes: Mapping[str, Any] = MappingProxyType({INTERRUPTED: True}),
    ) -> bool:
        """End a RUNNING trial, as interrupted unless `attributes` say otherwise, and queue its `successor`, if there is
        to be one.

        Returns False, and changes nothing, where it is over already, or has another lease than was `seen`.
        """
        with self._transaction(trial_id) as session:
            trial = _locked(session, trial_id)
            lease = session.execute(select(leases.c.expires).where(leases.c.trial_id == trial_id)).first()
            if trial.state is not TrialState.RUNNING or (seen and lease != (seen.expires,)):
                return False
            for key, value in attributes.items():
                self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)
            if successor is not None:
                self._queue(session, trial, successor)
            trial.state, trial.datetime_complete = TrialState.FAIL, datetime.now()
            self._release(session, trial_id)
        return True

    @_patient
    def succeed(self, trial_id: int, successor: FrozenTrial) -> bool:
        """Queue the `successor` of a trial that is over, unless it has one. Returns whether this did."""
        with self._transaction(trial_id) as session:
            return self._queue(session, _locked(session, trial_id), successor)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; what begins to run is leased, and what is told was not over, also on SQLite."""
        asked = trial_id, state, values
        return self.patience.until(
            lambda is_again: (is_again and self._is_in_state(*asked)) or self._set_state_values(*asked)
        )

    def _is_in_state(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        """Whether this process has set it, when the connection broke before it heard so."""
        trial = self.get_trial(trial_id)
        if trial.state is not state or state is not TrialState.RUNNING:
            return trial.state is state and trial.values == values and INTERRUPTED not in trial.user_attrs
        return trial_id in self.renew([trial_id])

    def _set_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        with self._transaction(trial_id) as session:
            if state is TrialState.RUNNING:
                if _locked(session, trial_id).state is not TrialState.WAITING:
                    return False
                self._lease(session, trial_id)
            else:
                self._release(session, trial_id)
            return super().set_trial_state_values(trial_id, state, values)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        if trial.state is TrialState.RUNNING:
            self._lease(session, trial.trial_id)
        return trial

    @_patient
    def write_fold(self, trial_id: int, row: FoldRow) -> bool:
        """Keep what has come of a fold. Returns False, and changes nothing, where we do not hold the trial."""
        with self._transaction(trial_id) as session:
            is_ours = select(leases.c.trial_id).where(leases.c.trial_id == trial_id, *self._is_ours())
            is_held = session.execute(is_ours).first() is not None
            if is_held:
                fold_ledger.write(session, trial_id, row)
        return is_held

    @_patient
    def folds(self, trial_id: int) -> list[FoldRow]:
        """What has come of the folds of a trial, by number."""
        with self.engine.connect() as connection:
            chosen = select(folds).where(folds.c.trial_id == trial_id).order_by(folds.c.fold)
            return fold_ledger.read(connection.execute(chosen).all())

    def _queue(self, session: Session, trial: Any, successor: FrozenTrial) -> bool:
        models.StudyModel.find_or_raise_by_id(trial.study_id, session, for_update=True)  # numbers are given one by one
        attribute = models.TrialUserAttributeModel
        known = select(attribute.trial_id).join(models.TrialModel, models.TrialModel.trial_id == attribute.trial_id)
        is_it = (attribute.key == SUCCEEDS, attribute.value_json == json.dumps(trial.number))
        if session.execute(known.where(models.TrialModel.study_id == trial.study_id, *is_it)).first():
            return False
        successor.set_user_attr(SUCCEEDS, trial.number)
        self._get_prepared_new_trial(trial.study_id, successor, session)
        return True

    def _lease(self, session: Session, trial_id: int) -> None:
        self._release(session, trial_id)  # of an earlier trial: SQLite gives the ids of deleted studies again
        fold_ledger.forget(session, trial_id)
        row = dict(zip(("host", "pid", "since"), astuple(self.holder), strict=True))
        session.execute(insert(leases).values(trial_id=trial_id, expires=self._now() + LEASE_S, **row))

    def _release(self, session: Session, trial_id: int) -> None:
        session.execute(delete(leases).where(leases.c.trial_id == trial_id))

    @contextmanager
    def _transaction(self, trial_id: int) -> Iterator[Session]:
        """All of the block, and what Optuna does in it, at once: it works in the same session, which is the thread's.

        It begins with a write, for which SQLite waits until it is the only one; elsewhere rows are locked.
        """
        session = self.scoped_session()
        try:
            session.execute(update(leases).where(leases.c.trial_id == trial_id).values(trial_id=trial_id))
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    def _is_ours(self) -> tuple[sqlalchemy.ColumnElement[bool], ...]:
        holder = self.holder
        return leases.c.host == holder.host, leases.c.pid == holder.pid, leases.c.since == holder.since

    def _now(self) -> sqlalchemy.ColumnElement[float]:
        if self._clock is not None:
            return literal(self._clock())
        return sqlalchemy.literal_column(DATABASE_TIME[self.engine.name], Float(53))


TRANSACTIONS = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "_get_trials",
    "_get_best_trial_id",
)
"""What studies and trials call of Optuna's storage, through its cache."""
for _name in TRANSACTIONS:
    setattr(LedgerStorage, _name, _patient(getattr(RDBStorage, _name)))


def _locked(session: Session, trial_id: int) -> Any:
    return models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)


def ledger_of(study: optuna.Study) -> LedgerStorage:
    """The storage of a study that was opened by ``hpo.storage``."""
    storage = getattr(study._storage, "_backend", study._storage)
    if not isinstance(storage, LedgerStorage):
        raise TypeError(f"a sweep needs a study in a LedgerStorage, not in {type(storage).__name__}")
    return storage
