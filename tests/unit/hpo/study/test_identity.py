"""Which changes of a definition a study may be continued with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.definition import StudyDefinition
from hpo.errors import StudyChangedError, StudyNotFoundError
from hpo.fold_ledger import FoldRow, FoldState
from hpo.identity import identity_differences
from hpo.ledger import LedgerStorage
from hpo.study import IDENTITY, ask, interrupt, load_study, open_study
from tests.unit.hpo.study.definitions import CONDITIONAL, MOMENTUM, NAME, PLAIN, SCORED, define, evaluate


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"objective": {"metric": "accuracy", "direction": "minimize"}}, "objective.direction: maximize -> minimize"),
        ({"objective": {"metric": "f1_macro", "direction": "maximize"}}, "objective.metric: accuracy -> f1_macro"),
        (
            {"space": {**CONDITIONAL, "optimizer.name": {"choice": ["sgd"]}}},
            "search_space.optimizer.name: {'choice': ['adamw', 'sgd']} -> {'choice': ['sgd']}",
        ),
        (
            {"space": {**CONDITIONAL, "optimizer.lr": {"float": [1e-4, 1e-1]}}},
            "search_space.optimizer.lr: {'float': [0.0001, 0.1], 'log': True} -> {'float': [0.0001, 0.1]}",
        ),
        (
            {"space": {**CONDITIONAL, "optimizer.lr": {"choice": [0.1]}}},
            "search_space.optimizer.lr: {'float': [0.0001, 0.1], 'log': True} -> {'choice': [0.1]}",
        ),
        ({"settings": ("seed=1",)}, "config.seed: 0 -> 1"),
        ({"settings": ("model.hidden_size=8",)}, "config.model.hidden_size: None -> 8"),
        ({"settings": ("training.epochs=7",)}, "config.training.epochs: 3 -> 7"),
    ],
)
def test_a_change_that_makes_scores_incomparable_is_a_difference(changes: dict[str, Any], line: str) -> None:
    assert differences(define(CONDITIONAL), define(**{"space": CONDITIONAL, **changes})) == [line]


def differences(made: StudyDefinition, wanted: StudyDefinition) -> list[str]:
    """What keeps a study from being continued, after the way through a database that every identity goes."""
    return identity_differences(json.loads(json.dumps(made.identity())), wanted.identity())


def test_a_study_made_otherwise_is_refused_with_the_differences_and_left_as_it_was(storage: RDBStorage) -> None:
    study = open_study(define(), storage)
    study.add_trial(SCORED)
    before = study.user_attrs
    with pytest.raises(StudyChangedError) as caught:
        open_study(define(objective={"metric": "loss", "direction": "minimize"}, settings=("seed=1",)), storage)
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith("study 'demo' in ") and first.endswith(" was made from another definition:")
    assert lines == [
        "  objective.metric: accuracy -> loss",
        "  objective.direction: maximize -> minimize",
        "  config.seed: 0 -> 1",
    ]
    assert last.startswith("Scores would not be comparable: ")
    assert (study.user_attrs, study.direction.name) == (before, "MAXIMIZE")


def test_a_mistake_can_be_corrected_while_nothing_is_scored(storage: RDBStorage) -> None:
    study = open_study(define(settings=("seed=1",)), storage)
    study.add_trial(create_trial(state=TrialState.FAIL))
    said: list[str] = []
    assert open_study(define(settings=("seed=2",)), storage, said.append).user_attrs[IDENTITY]["config"]["seed"] == 2
    assert said == ["the definition changed: config.seed: 1 -> 2"]
    study.add_trial(SCORED)
    with pytest.raises(StudyChangedError, match="seed: 2 -> 3"):
        open_study(define(settings=("seed=3",)), storage)


def test_the_metric_can_be_corrected_while_no_fold_has_a_score(storage: LedgerStorage) -> None:
    said: list[str] = []
    study = open_study(define(), storage)
    storage.set_trial_state_values(ask(study, define())[0]._trial_id, TrialState.FAIL)
    better, worse = ({"metric": "f1_macro", "direction": to} for to in ("maximize", "minimize"))
    with pytest.raises(StudyChangedError, match="maximize -> minimize"):  # which Optuna keeps for ever
        open_study(define(objective=worse), storage)
    again = open_study(define(objective=better), storage, said.append)
    assert said == ["the definition changed: objective.metric: accuracy -> f1_macro"]
    assert again.metric_names == ["f1_macro"]
    trial, _ = ask(again, define(objective=better))
    row = FoldRow(fold=0, state=FoldState.COMPLETE, attempt=1, trained_by=1, run_dir="")
    assert storage.write_fold(trial._trial_id, row)
    interrupt(again, trial.number)
    with pytest.raises(StudyChangedError, match="f1_macro -> accuracy"):
        open_study(define(), storage)


def test_the_difference_shows_no_password(memory: RDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    open_study(define(), memory).add_trial(SCORED)
    monkeypatch.setattr(memory, "url", "postgresql://user:s3cret@host/db")
    for refused in (lambda: open_study(define(settings=("seed=1",)), memory), lambda: load_study("x", memory)):
        with pytest.raises((StudyChangedError, StudyNotFoundError)) as caught:
            refused()
        assert "***@host/db" in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"space": {**CONDITIONAL, "optimizer.lr": {"float": [1e-6, 1.0], "log": True}}},
        {"space": {**CONDITIONAL, "optimizer.lr": {"float": [1e-3, 1e-2], "log": True}}},
        {"space": {**CONDITIONAL, "optimizer.weight_decay": {"float": [0.0, 0.1]}}},
        {"space": {"optimizer.name": NAME, "optimizer.momentum": MOMENTUM}},
        {"settings": ("optimizer.lr=0.05",)},
        {"settings": ("distributed.devices=2", "output.root=elsewhere")},
        {"sampler": {"name": "tpe", "seed": 5}},
    ],
    ids=["wider", "narrower", "added", "removed", "pinned", "volatile", "sampler"],
)
def test_a_change_that_leaves_scores_comparable_is_no_difference(changes: dict[str, Any]) -> None:
    assert differences(define(CONDITIONAL), define(**{"space": CONDITIONAL, **changes})) == []


def test_a_study_of_before_a_key_existed_goes_on_with_its_default_and_not_with_another(memory: RDBStorage) -> None:
    identity = define().identity()
    before = {**identity, "config": {key: value for key, value in identity["config"].items() if key != "seed"}}
    assert identity_differences(before, define().identity()) == []
    changed = define(settings=("seed=1",)).identity()
    assert identity_differences(before, changed) == ["config.seed: 0 -> 1"]


def test_a_wider_range_is_accepted_and_really_searched(storage: RDBStorage) -> None:
    narrow = define({"optimizer.lr": {"float": [0.1, 0.2]}})
    evaluate(open_study(narrow, storage), narrow, 2)
    wide = define({"optimizer.lr": {"float": [0.1, 100.0]}})
    assert any(params["optimizer.lr"] > 0.2 for params in evaluate(open_study(wide, storage), wide, 5))


def test_longer_trainings_are_refused_because_they_number_the_reported_values(memory: RDBStorage) -> None:
    open_study(define(PLAIN), memory).add_trial(SCORED)
    open_study(define({**PLAIN, "training.epochs": {"int": [2, 5]}}), memory)
    with pytest.raises(StudyChangedError, match=r"highest training\.epochs: 5 -> 9"):
        open_study(define({**PLAIN, "training.epochs": {"int": [1, 9]}}), memory)
