"""The places of a study: who takes one, and who keeps it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo.definition import StudyDefinition
from hpo.study import (
    ask,
    finished_trials,
    folder_of,
    interrupt,
    num_finished,
    open_study,
    places_taken,
    revive,
    take_place,
    withdraw,
)
from tests.unit.hpo.study.definitions import SCORED, define


def stop_one(study: optuna.Study, definition: StudyDefinition) -> dict[str, Any]:
    """A trial that is told as stopped; returns its hyperparameters."""
    trial, params = ask(study, definition)
    study.tell(trial, state=TrialState.PRUNED)
    return params


def test_a_stopped_trial_is_taken_up_in_its_own_place(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    params = stop_one(study, definition)
    assert take_place(study, definition, 1) is None, "the only place is taken"
    assert revive(study, 0)
    assert not revive(study, 0), "once"
    taken = take_place(study, definition, 1)
    assert taken is not None
    trial, repeated = taken
    assert (trial.number, repeated, places_taken(study), num_finished(study)) == (1, params, 1, 1)
    assert trial.user_attrs["hpo:losses"] == [0, 0], "processes that were lost before it was stopped are forgotten"
    study.tell(trial, 0.7)
    assert (places_taken(study), num_finished(study)) == (1, 1)
    assert not revive(study, 0)
    assert take_place(study, definition, 1) is None


def test_where_no_more_are_asked_for_only_stopped_trials_are_taken_up(storage: RDBStorage) -> None:
    """Else two processes that see one promotion would take it, and sample a new trial."""
    definition = define()
    study = open_study(definition, storage)
    stop_one(study, definition)
    assert take_place(study, definition, 9, asks=False) is None
    assert revive(study, 0)
    taken = take_place(study, definition, 9, asks=False)
    assert taken is not None and taken[0].user_attrs["hpo:revives"] == 0
    assert take_place(study, definition, 9, asks=False) is None
    assert len(study.trials) == 2


def test_a_process_that_was_stopped_while_it_asked_holds_up_nobody_for_long(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = define()
    study = open_study(definition, storage)
    monkeypatch.setattr("hpo.study.LOCK_WAIT_S", 0.1)
    holds = f"import filelock; filelock.FileLock({str(folder_of(study) / '.ask.lock')!r}).acquire(); print('holds')"
    stopped = subprocess.Popen(
        [sys.executable, "-c", f"{holds}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        assert stopped.stdout is not None and stopped.stdout.read(5) == b"holds"
        stopped.send_signal(signal.SIGSTOP)
        taken = take_place(study, definition, 2)
        assert taken is not None and taken[0].number == 0
    finally:
        stopped.kill()
        stopped.communicate()
    assert take_place(study, definition, 2) is not None


def test_a_trial_cut_short_while_it_took_up_another_keeps_its_place(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    params = stop_one(study, definition)
    revive(study, 0)
    taken = take_place(study, definition, 1)
    assert taken is not None
    interrupt(study, taken[0].number)
    assert not revive(study, 0), "it is queued already"
    again = take_place(study, definition, 1)
    assert again is not None
    assert (again[1], places_taken(study)) == (params, 1)


def test_a_place_is_taken_by_who_has_the_lower_number(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    study.add_trial(SCORED)
    ask(study, definition)
    ask(study, definition)
    assert [places_taken(study, before=number) for number in (1, 2)] == [1, 2]
    withdraw(study, 2)
    assert (places_taken(study), len(finished_trials(study)), study.trials[2].state.name) == (2, 1, "FAIL")
