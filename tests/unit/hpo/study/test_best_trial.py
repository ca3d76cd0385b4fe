"""The best trial of a study."""

from __future__ import annotations

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo.errors import NoBestTrialError
from hpo.study import ask, best_trial, best_value, open_study
from hpo.tally import PAUSED
from tests.unit.hpo.study.definitions import define


def test_the_best_trial_is_the_best_completed_one(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    assert best_value(study) is None
    for told in (0.5, 0.75, TrialState.FAIL, 0.25):
        trial, _ = ask(study, definition)
        if isinstance(told, TrialState):
            study.tell(trial, state=told)
        else:
            study.tell(trial, told)
    assert (best_trial(study).number, best_value(study)) == (1, 0.75)


def test_without_a_completed_trial_there_is_no_best_one(memory: RDBStorage) -> None:
    study = open_study(define(), memory)
    study.tell(ask(study, define())[0], state=TrialState.PRUNED)
    with pytest.raises(NoBestTrialError, match="study 'demo' has no completed trial yet; see hpo status"):
        best_trial(study)


def test_where_trials_are_only_paused_it_says_how_the_best_of_them_comes_to_its_end(memory: RDBStorage) -> None:
    study = open_study(define(), memory)
    for _ in range(2):
        trial, _ = ask(study, define())
        trial.report(0.5, 1)
        trial.set_user_attr(PAUSED, True)
        study.tell(trial, state=TrialState.PRUNED)
    told = (
        "no completed trial yet, and 2 that are paused; hpo sweep --study demo --trials 2 takes the best of them to its"
    )
    with pytest.raises(NoBestTrialError, match=told):
        best_trial(study)
