"""The best trial of a study."""

from __future__ import annotations

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo.errors import NoBestTrialError
from hpo.study import ask, best_trial, best_value, open_study
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
    with pytest.raises(NoBestTrialError, match="study 'demo' has no completed trial yet"):
        best_trial(study)
