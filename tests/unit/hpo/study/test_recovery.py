"""Trials whose process is lost, on every kind of database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import RDBStorage

from hpo.definition import StudyDefinition
from hpo.ledger import Holder, ledger_of, this_host, this_process
from hpo.storage import open_storage
from hpo.study import FAILURE, ask, interrupt, load_study, num_finished, open_study, places_taken, recover, running_here
from hpo.tally import CONTINUES, LOSSES
from tests.unit.hpo.study.definitions import PLAIN, define, evaluate


def holder_of(process: subprocess.Popen[bytes]) -> Holder:
    began = psutil.Process(process.pid).create_time() - psutil.boot_time()
    return Holder(this_host(), process.pid, began)


def dead_process() -> Holder:
    """One that was killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = holder_of(process)
    process.kill()
    process.communicate()
    return holder


def asked(study: optuna.Study, definition: StudyDefinition, holder: Holder) -> dict[str, Any]:
    """The hyperparameters of a running trial that `holder` has asked for."""
    ledger = ledger_of(study)
    before, ledger._holder = ledger._holder, holder
    _, params = ask(study, definition)
    ledger._holder = before
    return params


def test_a_trial_belongs_to_the_process_that_asked_for_it(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    ask(study, definition)
    (held,) = ledger_of(study).held(study._study_id)
    assert held.holder == this_process()
    assert (held.holder.host, held.holder.pid) == (this_host(), os.getpid())
    assert running_here(study) == [0]


def test_the_trials_of_a_dead_process_are_queued_again_and_no_others(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    evaluate(study, definition, 1)
    dead = dead_process()
    lost = [asked(study, definition, dead)]
    ask(study, definition)
    asked(study, definition, replace(dead, host="another-machine"))
    lost.append(asked(study, definition, dead))
    assert list(recover(study)) == [1, 4]
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING", "RUNNING", "FAIL", "WAITING", "WAITING"]
    assert [ask(study, definition)[1] for _ in lost] == lost
    assert recover(study) == {}


def test_a_process_id_that_was_given_to_another_process_is_no_life_sign(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    asked(study, definition, replace(this_process(), since=this_process().since - 3600))
    assert list(recover(study)) == [0]


def test_a_dead_process_that_nobody_waited_for_is_dead(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    asked(study, definition, holder_of(process))
    assert recover(study) == {}
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and stays a zombie
    assert list(recover(study)) == [0]
    process.communicate()


def test_a_trial_killed_before_it_was_sampled_leaves_its_place_to_another(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    ledger_of(study)._holder = dead_process()
    study.ask()
    ledger_of(study)._holder = None
    assert list(recover(study)) == [0]
    assert places_taken(study) == 0
    assert set(ask(study, definition)[1]) == set(PLAIN)


def test_recovering_twice_queues_a_trial_once_more_and_not_twice(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    params = asked(study, definition, dead_process())
    recover(study)
    assert asked(study, definition, dead_process()) == params
    assert list(recover(study)) == [1]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "WAITING"]
    assert ask(study, definition)[1] == params


def test_a_trial_whose_process_is_lost_again_and_again_fails(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    for number in range(3):
        asked(study, definition, dead_process())
        ended = recover(study, max_losses=2)
        assert ended == {number: "its process ended; queued again" if number < 2 else LOST}
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 3
    assert study.trials[2].user_attrs[FAILURE]["kind"] == "infrastructure"
    assert (num_finished(study), places_taken(study)) == (1, 1), "it counts, and nothing goes on with it"


LOST = "infrastructure: its process was lost 3 times without a new evaluation in between"


def test_a_lost_trial_that_came_further_and_one_that_was_interrupted_are_not_counted(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    for reported in (0, 0, 3, 3, 2):
        asked(study, definition, dead_process())
        for step in range(reported):
            study._storage.set_trial_intermediate_value(study.trials[-1]._trial_id, step, 0.5)
        recover(study, max_losses=2)
        ask(study, definition)
        interrupt(study, study.trials[-1].number)
    assert [trial.user_attrs.get(LOSSES) for trial in study.trials[1::2]] == [[1, 0], [2, 0], [1, 3], [2, 3], None]
    assert study.trials[8].user_attrs[FAILURE]["message"] == LOST.removeprefix("infrastructure: ")


def test_processes_that_recover_at_the_same_moment_queue_each_trial_once(storage_url: str, tmp_path: Path) -> None:
    definition = define()
    study = open_study(definition, open_storage(storage_url))
    for _ in range(4):
        asked(study, definition, dead_process())
    barrier = threading.Barrier(3)

    def recover_too() -> list[int]:
        own = load_study(study.study_name, open_storage(storage_url))
        barrier.wait()
        return list(recover(own))

    with ThreadPoolExecutor(3) as others:
        found = [each.result() for each in [others.submit(recover_too) for _ in range(3)]]
    assert sorted(number for numbers in found for number in numbers) == [0, 1, 2, 3]
    retries = [trial.user_attrs.get(CONTINUES) for trial in study.get_trials(deepcopy=False)[4:]]
    assert sorted(retries) == [0, 1, 2, 3]


def test_trials_of_another_machine_are_left_alone_until_their_lease_expires(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(define(), storage)
    asked(study, define(), Holder("another", 1, 0.0))
    assert (recover(study), running_here(study)) == ({}, [])
    monkeypatch.setattr("hpo.ledger.LEASE_S", 0.0)
    params = asked(study, define(), Holder("another", 1, 0.0))
    assert list(recover(study)) == [1]
    assert ask(study, define())[1] == params
