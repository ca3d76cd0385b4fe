"""The ledger as a state machine, against a model of it, on every kind of database and on a clock of our own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import optuna
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import text

from hpo.fold_ledger import Facts, FoldRow, FoldState
from hpo.ledger import LEASE_S, NOBODY, SUCCEEDS, Held, Holder, LedgerStorage, ledger_of
from hpo.study import interrupt, recover, revive, running_here
from hpo.tally import INTERRUPTED, REVIVES, SAMPLED, tally_of

WORKERS = [0, 1, 2]


@dataclass
class Known:
    """What the model knows of a trial."""

    state: TrialState
    holder: int | None = None
    expires: float = 0.0
    successor: int | None = None
    interrupted: bool = False
    revives: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Several workers at one study, which ask, fall silent, come back and tell in any order."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.now = 1000.0
        self.storages = [
            LedgerStorage(url, holder=Holder(f"host-{worker}", worker, 0.5), clock=lambda: self.now)
            for worker in WORKERS
        ]
        name = uuid.uuid4().hex
        optuna.create_study(study_name=name, storage=self.storages[0], direction="maximize")
        self.studies = [optuna.load_study(study_name=name, storage=storage) for storage in self.storages]
        self.studies[0].set_user_attr("hpo:folder", name)
        self.known: list[Known] = []
        self.seen: list[Held] = []

    def teardown(self) -> None:
        for storage in self.storages:
            storage.remove_session()
            storage.engine.dispose()

    @rule(worker=st.sampled_from(WORKERS))
    def ask(self, worker: int) -> None:
        waiting = [number for number, known in enumerate(self.known) if known.state is TrialState.WAITING]
        number = waiting[0] if waiting else len(self.known)
        trial = self.studies[worker].ask()
        trial.set_user_attr(SAMPLED, {"x": trial.suggest_float("x", 0.0, 1.0)})
        assert trial.number == number
        if not waiting:
            self.known.append(Known(TrialState.RUNNING))
        known = self.known[number]
        known.state, known.holder, known.expires = TrialState.RUNNING, worker, self.now + LEASE_S

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S, 2 * LEASE_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: int) -> None:
        ours = [number for number, known in self.known_running() if known.holder == worker]
        everything = [trial._trial_id for trial in self.studies[worker].get_trials(deepcopy=False)]
        held = self.storages[worker].renew(everything)
        assert {self.number_of(trial_id) for trial_id in held} == set(ours), "only its own, and only those that run"
        for number in ours:
            self.known[number].expires = self.now + LEASE_S

    @precondition(lambda self: self.known)
    @rule(worker=st.sampled_from(WORKERS), data=st.data(), state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]))
    def tell(self, worker: int, data: st.DataObject, state: str) -> None:
        number = data.draw(st.sampled_from(range(len(self.known))))
        known = self.known[number]
        if known.state is TrialState.WAITING:
            return
        told, values = TrialState[state], [0.5] if state == "COMPLETE" else None
        try:
            self.storages[worker].set_trial_state_values(self.trial_id(number), told, values)
        except UpdateFinishedTrialError:
            assert known.state is not TrialState.RUNNING
        else:
            assert known.state is TrialState.RUNNING
            known.state = told

    @precondition(lambda self: self.known)
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def interrupt(self, worker: int, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.known))))
        did = interrupt(self.studies[worker], number)
        assert did == (self.known[number].state is TrialState.RUNNING)
        if did:
            self.cut_short(number)

    @rule(worker=st.sampled_from(WORKERS))
    def recover(self, worker: int) -> None:
        others = [(number, known) for number, known in self.known_running() if known.holder != worker]
        lost = [number for number, known in others if known.expires <= self.now]
        assert list(recover(self.studies[worker])) == lost
        for number in lost:
            self.cut_short(number)

    @rule(worker=st.sampled_from(WORKERS))
    def look(self, worker: int) -> None:
        self.seen = self.storages[worker].held(self.studies[worker]._study_id)
        assert [(each.number, each.expires, each.is_expired) for each in self.seen] == [
            (number, known.expires, known.expires <= self.now) for number, known in self.known_running()
        ]

    @precondition(lambda self: self.seen)
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def end_what_was_seen(self, worker: int, data: st.DataObject) -> None:
        """By a worker that was asleep between looking and acting."""
        seen = data.draw(st.sampled_from(self.seen))
        known = self.known[seen.number]
        did = self.storages[worker].hand_over(seen.trial_id, None, seen=seen)
        assert did == (known.state is TrialState.RUNNING and known.expires == seen.expires)
        if did:
            known.state, known.interrupted = TrialState.FAIL, True

    @precondition(lambda self: any(known.state is TrialState.PRUNED for known in self.known))
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def revive(self, worker: int, data: st.DataObject) -> None:
        pruned = [number for number, known in enumerate(self.known) if known.state is TrialState.PRUNED]
        number = data.draw(st.sampled_from(pruned))
        assert revive(self.studies[worker], number) == (self.known[number].successor is None)
        if self.known[number].successor is None:
            self.queue(number, revives=True)

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        trials = self.studies[0].get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [known.state for known in self.known]
        assert [INTERRUPTED in trial.user_attrs for trial in trials] == [known.interrupted for known in self.known]
        assert [REVIVES in trial.user_attrs for trial in trials] == [known.revives for known in self.known]
        for number, known in enumerate(self.known):
            if known.successor is not None:
                assert trials[known.successor].user_attrs[SUCCEEDS] == number

    @invariant()
    def what_runs_and_nothing_else_is_leased(self) -> None:
        with self.storages[0].engine.connect() as connection:
            of_study = "SELECT trial_id FROM trials WHERE study_id = :study_id"
            query = text(f"SELECT trial_id FROM hpo_leases WHERE trial_id IN ({of_study})")
            leased = connection.scalars(query, {"study_id": self.studies[0]._study_id}).all()
        assert sorted(map(self.number_of, leased)) == [number for number, _ in self.known_running()]

    @invariant()
    def every_worker_counts_the_same_places(self) -> None:
        counted = [known for known in self.known if not (known.interrupted or known.revives)]
        taken = sum(known.state is not TrialState.WAITING for known in counted)
        assert [tally_of(study).places_taken() for study in self.studies] == [taken] * len(WORKERS)

    def known_running(self) -> list[tuple[int, Known]]:
        return [(number, known) for number, known in enumerate(self.known) if known.state is TrialState.RUNNING]

    def cut_short(self, number: int) -> None:
        self.known[number].state, self.known[number].interrupted = TrialState.FAIL, True
        self.queue(number, revives=self.known[number].revives)

    def queue(self, number: int, *, revives: bool) -> None:
        self.known[number].successor = len(self.known)
        self.known.append(Known(TrialState.WAITING, revives=revives))

    def trial_id(self, number: int) -> int:
        return self.storages[0].get_trial_id_from_study_id_trial_number(self.studies[0]._study_id, number)

    def number_of(self, trial_id: int) -> int:
        return self.storages[0].get_trial(trial_id).number


def test_whatever_workers_do_in_whatever_order_each_trial_has_one_holder_and_one_successor(storage_url: str) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    chosen = settings(max_examples=10, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(lambda: LedgerMachine(storage_url), settings=chosen)


@contextmanager
def opened(url: str, *, host: str = "here") -> Iterator[optuna.Study]:
    """One study, by another process each time."""
    storage = LedgerStorage(url, holder=Holder(host, 1, 0.0))
    yield optuna.create_study(study_name="one", storage=storage, direction="maximize", load_if_exists=True)
    storage.remove_session()
    storage.engine.dispose()


def ask(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.set_user_attr(SAMPLED, {"x": trial.suggest_float("x", 0.0, 1.0)})
    return trial


def at_once(*actions: Callable[[], bool]) -> list[bool]:
    """What each returned, begun at the same moment."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], bool]) -> bool:
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return [each.result() for each in [threads.submit(act, action) for action in actions]]


def test_of_those_who_end_a_trial_at_the_same_moment_one_does(storage_url: str) -> None:
    with opened(storage_url) as ours, opened(storage_url) as theirs, opened(storage_url) as others:

        def tell(number: int) -> bool:
            try:
                ours.tell(number, 0.5)
            except (UpdateFinishedTrialError, ValueError):
                return False
            return True

        for _ in range(25):
            number = ask(ours).number
            did = at_once(partial(tell, number), partial(interrupt, theirs, number), partial(interrupt, others, number))
            assert sum(did) == 1, did
            trials = ours.get_trials(deepcopy=False)
            assert trials[number].state is (TrialState.COMPLETE if did[0] else TrialState.FAIL)
            assert len(trials) == number + 1 + (not did[0]), "one successor of a trial that was cut short, else none"
            if not did[0]:
                ours.tell(ask(ours), 0.5)


def test_of_those_who_take_up_a_stopped_trial_at_the_same_moment_one_does(storage_url: str) -> None:
    with opened(storage_url) as ours, opened(storage_url) as theirs:
        for _ in range(25):
            number = ask(ours).number
            ours.tell(number, state=TrialState.PRUNED)
            assert sum(at_once(partial(revive, ours, number), partial(revive, theirs, number))) == 1
            ours.tell(ask(ours), 0.5)


def test_of_those_who_ask_for_a_waiting_trial_at_the_same_moment_one_gets_it(storage_url: str) -> None:
    with opened(storage_url, host="one") as ours, opened(storage_url, host="two") as theirs:
        for _ in range(10):
            ours.enqueue_trial({"x": 0.1})
            numbers: list[int] = []

            def take(study: optuna.Study, numbers: list[int] = numbers) -> bool:
                numbers.append(ask(study).number)
                return numbers[-1] in running_here(study)

            assert at_once(lambda: take(ours), lambda: take(theirs)) == [True, True]
            assert len(set(numbers)) == 2
            for number in numbers:
                ours.tell(number, 0.5)


def test_a_trial_that_something_else_asked_for_expires_as_well(storage_url: str) -> None:
    now = [0.0]
    storage = LedgerStorage(storage_url, clock=lambda: now[0])
    study = optuna.create_study(study_name="one", storage=storage)
    study.set_user_attr("hpo:folder", "one")
    study.ask()
    with storage.engine.begin() as connection:
        connection.execute(text("DELETE FROM hpo_leases"))
    assert recover(study) == {}
    (held,) = ledger_of(study).held(study._study_id)
    assert (held.holder, held.expires) == (NOBODY, LEASE_S)
    now[0] = LEASE_S
    assert list(recover(study)) == [0]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL], "nothing was sampled that could go on"
    storage.remove_session()
    storage.engine.dispose()


def test_leases_expire_by_the_clock_of_the_database(storage_url: str) -> None:
    with opened(storage_url) as study:
        ask(study)
        (held,) = ledger_of(study).held(study._study_id)
        with ledger_of(study).engine.connect() as connection:
            sqlite = study._storage._backend.engine.name == "sqlite"  # type: ignore[attr-defined]
            now = connection.scalar(text("SELECT unixepoch()" if sqlite else "SELECT extract(epoch FROM now())"))
        assert 0.0 < held.expires - float(now) <= LEASE_S + 5.0
        assert not held.is_expired


def complete(fold: int, score: float | tuple[float, ...]) -> FoldRow:
    facts = Facts(score=score, metrics={"accuracy": 0.5}, epochs=3, split_id="split", computed="digest")
    return FoldRow(
        fold=fold, state=FoldState.COMPLETE, attempt=1, trained_by=0, run_dir="/runs/one/trial_0000/fold_0", facts=facts
    )


def test_a_fold_is_written_by_the_holder_of_its_trial_and_once(storage_url: str) -> None:
    with opened(storage_url) as study, opened(storage_url) as other:
        ledger, trial = ledger_of(study), ask(study)
        begun = replace(complete(0, 0.1 + 0.2), state=FoldState.RUNNING, facts=None)
        for row in (begun, complete(0, 0.1 + 0.2), complete(0, 0.9), begun, complete(1, (0.1, 0.2))):
            assert ledger.write_fold(trial._trial_id, row)
        kept = [complete(0, 0.1 + 0.2), complete(1, (0.1, 0.2))]
        assert ledger_of(other).folds(trial._trial_id) == kept, "the first result stays, to the bit"
        ledger_of(other)._holder = Holder("elsewhere", 1, 0.5)
        assert not ledger_of(other).write_fold(trial._trial_id, complete(2, 0.1)), "it is not theirs"
        study.tell(trial, 0.5)
        assert not ledger.write_fold(trial._trial_id, complete(2, 0.1)), "it is over"
        assert ledger.folds(trial._trial_id) == kept


def test_folds_of_a_deleted_study_are_not_those_of_another(storage_url: str) -> None:
    with opened(storage_url) as study:
        ledger_of(study).write_fold(ask(study)._trial_id, complete(0, 0.5))
        optuna.delete_study(study_name=study.study_name, storage=study._storage)
        another = optuna.create_study(study_name="another", storage=study._storage)
        assert ledger_of(another).folds(another.ask()._trial_id) == []


def test_a_trial_told_by_optuna_alone_is_not_held_any_more(storage_url: str) -> None:
    with opened(storage_url) as study:
        trial = ask(study)
        assert ledger_of(study).renew([trial._trial_id]) == {trial._trial_id}
        plain = optuna.storages.RDBStorage(storage_url)
        plain.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        assert ledger_of(study).renew([trial._trial_id]) == set()
        plain.remove_session()
        plain.engine.dispose()
