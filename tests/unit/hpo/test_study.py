"""The Optuna study of a definition, on every kind of database: created, continued, sampled and recovered."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.definition import StudyDefinition
from hpo.errors import NoBestTrialError, StudyChangedError, StudyNotFoundError
from hpo.ledger import Holder, LedgerStorage, ledger_of, this_host, this_process
from hpo.sampling import grid_size, sampled
from hpo.storage import open_storage
from hpo.study import (
    FAILURE,
    IDENTITY,
    ask,
    best_trial,
    best_value,
    finished_trials,
    folder_of,
    identity_differences,
    inherit_folds,
    interrupt,
    load_study,
    num_finished,
    open_study,
    places_taken,
    recover,
    revive,
    running_here,
    take_place,
    trial_folder,
    withdraw,
)
from hpo.study_config import StudyConfig
from hpo.tally import CONTINUES, INTERRUPTED, LOSSES
from training.config import Layer, job_config, merge, settings_layer

LR = {"float": [1e-4, 1e-1], "log": True}
NAME = {"choice": ["adamw", "sgd"]}
MOMENTUM = {"float": [0.5, 0.99], "when": {"optimizer.name": "sgd"}}
EPOCHS = {"int": [1, 5]}
PLAIN = {"optimizer.lr": LR, "optimizer.momentum": {"float": [0.5, 0.99]}, "training.epochs": EPOCHS}
CONDITIONAL = {"optimizer.lr": LR, "optimizer.name": NAME, "optimizer.momentum": MOMENTUM}
SCORED = create_trial(state=TrialState.COMPLETE, value=1.0)
GRID = {"optimizer.name": NAME, "training.epochs": {"int": [1, 3]}, "optimizer.lr": {"float": [0.1, 0.3], "step": 0.1}}


@pytest.fixture
def storage(storage_url: str) -> Iterator[RDBStorage]:
    """A fresh database, once for each kind."""
    opened = open_storage(storage_url)
    yield opened
    close(opened)


@pytest.fixture
def memory() -> Iterator[RDBStorage]:
    """One kind of database, the fastest, for what does not depend on it."""
    opened = LedgerStorage("sqlite://")
    yield opened
    close(opened)


def close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with everything that is written below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def define(
    space: Mapping[str, Any] = PLAIN,
    *,
    study: str = "demo",
    sampler: Mapping[str, Any] | None = None,
    objective: Mapping[str, str] | None = None,
    settings: tuple[str, ...] = (),
) -> StudyDefinition:
    """A definition as ``load_definition`` makes one, of defaults and ``--set`` arguments."""
    config = StudyConfig.model_validate(
        {
            "study": study,
            "objective": objective or {"metric": "accuracy", "direction": "maximize"},
            "search_space": space,
            "sampler": {"startup_trials": 3, **(sampler or {"name": "random"})},
        }
    )
    chosen = settings_layer(settings)
    job = job_config(merge([Layer(), chosen]))
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=chosen)


def score(params: Mapping[str, Any]) -> float:
    """An objective with one optimum, so that samplers have something to model."""
    lr, momentum = params.get("optimizer.lr", 0.01), params.get("optimizer.momentum", 0.7)
    return 1.0 - abs(math.log10(lr) + 2.3) / 4 - (momentum - 0.8) ** 2 + 0.01 * params.get("training.epochs", 1)


def evaluate(study: optuna.Study, definition: StudyDefinition, trials: int) -> list[dict[str, Any]]:
    """Ask and tell; returns the hyperparameters."""
    sampled = []
    for _ in range(trials):
        trial, params = ask(study, definition)
        assert trial.params == params
        study.tell(trial, score(params))
        sampled.append(params)
    return sampled


# Created and continued


def test_a_new_study_knows_its_objective_its_folder_and_its_own_id(storage: RDBStorage, folder: Path) -> None:
    study = open_study(define(), storage)
    other = open_study(define(study="other", objective={"metric": "loss", "direction": "minimize"}), storage)
    assert (study.direction.name, study.metric_names) == ("MAXIMIZE", ["accuracy"])
    assert (other.direction.name, other.metric_names) == ("MINIMIZE", ["loss"])
    assert (folder_of(study), folder_of(other)) == (folder / "runs/demo", folder / "runs/other")
    assert study.user_attrs["hpo:uid"] != other.user_attrs["hpo:uid"]


def test_a_study_is_continued_with_everything_it_had(storage: RDBStorage, storage_url: str) -> None:
    first = open_study(define(), storage)
    evaluate(first, define(), 2)
    again = open_storage(storage_url)
    second = open_study(define(), again)
    assert second.user_attrs == first.user_attrs
    assert [trial.params for trial in second.trials] == [trial.params for trial in first.trials]
    close(again)


def test_studies_of_one_name_in_two_databases_do_not_share_a_folder(folder: Path, storage: RDBStorage) -> None:
    elsewhere = open_storage(f"sqlite:///{folder / 'other.db'}")
    folders = [folder_of(open_study(define(), each)) for each in (storage, elsewhere)]
    assert folders == [folder / "runs/demo", folder / "runs/demo-2"]
    close(elsewhere)


def test_a_study_whose_creation_was_cut_short_is_completed(storage: RDBStorage) -> None:
    begun = optuna.create_study(study_name="demo", storage=storage, direction="maximize")
    begun.set_user_attr("hpo:uid", "1234")
    study = open_study(define(), storage)
    assert folder_of(study).is_dir()
    assert evaluate(study, define(), 1)


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
    assert line in differences(define(CONDITIONAL), define(**{"space": CONDITIONAL, **changes}))


def differences(made: StudyDefinition, wanted: StudyDefinition) -> list[str]:
    """What keeps a study from being continued, after the way through a database that every identity goes."""
    return identity_differences(json.loads(json.dumps(made.identity())), wanted.identity())


def test_a_study_made_otherwise_is_refused_with_the_differences_and_left_as_it_was(storage: RDBStorage) -> None:
    study = open_study(define(), storage)
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
    assert open_study(define(settings=("seed=2",)), storage).user_attrs[IDENTITY]["config"]["seed"] == 2
    study.add_trial(SCORED)
    with pytest.raises(StudyChangedError, match="seed: 2 -> 3"):
        open_study(define(settings=("seed=3",)), storage)


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


def test_a_study_that_does_not_exist_is_told_with_those_that_do(storage: RDBStorage) -> None:
    with pytest.raises(
        StudyNotFoundError, match=r"there is no study 'x' in .* \(there: none\); run hpo sweep --study x first"
    ):
        load_study("x", storage)
    open_study(define(study="b"), storage)
    open_study(define(study="a"), storage)
    with pytest.raises(StudyNotFoundError, match=r"\(there: a, b\)"):
        load_study("x", storage)
    assert load_study("a", storage).study_name == "a"


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


# Sampled

CMAES = pytest.param("cmaes", marks=pytest.mark.skipif(find_spec("cmaes") is None, reason="cmaes is not installed"))
SEEDED = ["random", "tpe", "qmc", CMAES, "gp"]


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", CMAES])
def test_a_continued_sweep_samples_what_an_uninterrupted_one_does(
    storage: RDBStorage, storage_url: str, name: str
) -> None:
    again = open_storage(storage_url)
    check_continuing(name, storage, again)
    close(again)


def test_a_continued_gp_sweep_samples_what_an_uninterrupted_one_does(memory: RDBStorage) -> None:
    check_continuing("gp", memory, memory)


def check_continuing(name: str, storage: RDBStorage, again: RDBStorage) -> None:
    sampler = {"name": name, "seed": 3}
    whole, parts = (define(study=study, sampler=sampler) for study in ("whole", "parts"))
    expected = evaluate(open_study(whole, storage), whole, 6)
    found = evaluate(open_study(parts, storage), parts, 4)
    found += evaluate(open_study(parts, again), parts, 2)
    assert found == expected
    assert len({repr(params) for params in found}) == len(found), "the same point again"


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_samples_other_points(memory: RDBStorage, name: str) -> None:
    first, second = (define(study=f"s{seed}", sampler={"name": name, "seed": seed}) for seed in (3, 4))
    assert evaluate(open_study(first, memory), first, 1) != evaluate(open_study(second, memory), second, 1)


@pytest.mark.parametrize("name", SEEDED)
def test_a_conditional_parameter_is_sampled_where_its_condition_holds_and_each_time_anew(
    memory: RDBStorage, name: str
) -> None:
    space = {**CONDITIONAL, "optimizer.name": {"choice": ["adamw", "sgd", "other"]}}
    space["optimizer.momentum"] = {**MOMENTUM, "when": {"optimizer.name": ["sgd", "other"]}}
    definition = define(space, sampler={"name": name, "seed": 1})
    sampled = evaluate(open_study(definition, memory), definition, 8)
    assert {params["optimizer.name"] for params in sampled} > {"adamw"}
    for params in sampled:
        assert ("optimizer.momentum" in params) == (params["optimizer.name"] != "adamw")
    for key in ("optimizer.lr", "optimizer.momentum"):
        values = [params[key] for params in sampled if key in params]
        assert 1 < len(values) == len(set(values)), key


@pytest.mark.parametrize("name", SEEDED)
def test_a_pinned_parameter_has_its_value_in_every_trial_and_the_others_vary(memory: RDBStorage, name: str) -> None:
    definition = define(CONDITIONAL, sampler={"name": name}, settings=("optimizer.lr=0.05", "optimizer.name=sgd"))
    sampled = evaluate(open_study(definition, memory), definition, 5)
    assert {params["optimizer.lr"] for params in sampled} == {0.05}
    assert {params["optimizer.name"] for params in sampled} == {"sgd"}
    assert len({params["optimizer.momentum"] for params in sampled}) == 5


def test_a_condition_may_be_on_what_the_configuration_fixes(memory: RDBStorage) -> None:
    space = {
        "optimizer.lr": {**LR, "when": {"distributed.strategy": "auto"}},
        "optimizer.momentum": {**MOMENTUM, "when": {"optimizer.name": "sgd"}},
    }
    definition = define(space)
    assert [set(params) for params in evaluate(open_study(definition, memory), definition, 1)] == [{"optimizer.lr"}]
    definition = define(space, study="sgd", settings=("optimizer.name=sgd", "distributed.strategy=none"))
    assert [set(params) for params in evaluate(open_study(definition, memory), definition, 1)] == [
        {"optimizer.momentum"}
    ]


def test_values_are_kept_at_full_precision(storage: RDBStorage, storage_url: str) -> None:
    definition = define()
    sampled = evaluate(open_study(definition, storage), definition, 3)
    again = open_storage(storage_url)
    assert [trial.params for trial in load_study("demo", again).trials] == sampled
    close(again)


def test_a_grid_is_visited_to_its_end_each_point_once_also_when_continued(
    storage: RDBStorage, storage_url: str
) -> None:
    definition = define(GRID, sampler={"name": "grid", "seed": 2})
    assert grid_size(definition) == 18
    visited = evaluate(open_study(definition, storage), definition, 11)
    again = open_storage(storage_url)
    visited += evaluate(open_study(definition, again), definition, 7)
    close(again)
    points = itertools.product(["adamw", "sgd"], [1, 2, 3], [0.1, 0.2, 0.3])
    expected = [{"optimizer.name": a, "training.epochs": b, "optimizer.lr": c} for a, b, c in points]
    assert sorted(visited, key=str) == sorted(({key: point[key] for key in visited[0]} for point in expected), key=str)


def test_a_grid_with_a_pinned_parameter_is_as_much_smaller(memory: RDBStorage) -> None:
    definition = define(GRID, sampler={"name": "grid"}, settings=("training.epochs=2", "optimizer.name=sgd"))
    assert grid_size(definition) == 3
    visited = evaluate(open_study(definition, memory), definition, 3)
    assert sorted(params["optimizer.lr"] for params in visited) == [0.1, 0.2, 0.3]
    assert {(params["training.epochs"], params["optimizer.name"]) for params in visited} == {(2, "sgd")}


def test_only_a_grid_has_a_size() -> None:
    assert grid_size(define()) is None


# Interrupted


def test_an_interrupted_trial_is_told_and_its_hyperparameters_are_asked_again(storage: RDBStorage) -> None:
    definition = define(CONDITIONAL)
    study = open_study(definition, storage)
    trial, params = ask(study, definition)
    interrupt(study, trial.number)
    assert study.trials[0].state is TrialState.FAIL
    again, repeated = ask(study, definition)
    assert (again.number, repeated) == (1, params)
    assert study.trials[1].user_attrs[CONTINUES] == 0
    assert ask(study, definition)[1] != params, "queued once"


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
    study.tell(trial, 0.7)
    assert (places_taken(study), num_finished(study)) == (1, 1)
    assert not revive(study, 0)
    assert take_place(study, definition, 1) is None


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


def test_a_trial_takes_over_the_folds_of_all_before_it_and_the_newest_of_each(memory: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, memory)
    trials = [ask(study, definition)[0]]
    for _ in range(2):
        interrupt(study, trials[-1].number)
        trials.append(ask(study, definition)[0])
    folders = [trial_folder(study, trial) for trial in trials]
    for folder, folds in zip(folders, ("012", "1", ""), strict=True):
        folder.mkdir(parents=True)
        for fold in folds:
            (folder / f"fold_{fold}").mkdir()
            (folder / f"fold_{fold}" / "by").write_text(folder.name)
    inherit_folds(study, trials[-1])
    found = {path.parent.name: path.read_text() for path in folders[2].glob("fold_*/by")}
    assert found == {"fold_0": "trial_0000", "fold_1": "trial_0001", "fold_2": "trial_0000"}
    with pytest.raises(FileNotFoundError):
        (folders[0] / "fold_0" / "metrics.jsonl").open("a")  # by a rank that is still there


def test_interrupting_a_trial_that_was_told_changes_nothing(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    trial, params = ask(study, definition)
    study.tell(trial, 0.5)
    interrupt(study, trial.number)
    (only,) = study.trials
    assert (only.state, only.value, INTERRUPTED in only.user_attrs) == (TrialState.COMPLETE, 0.5, False)


def test_interrupted_trials_are_not_finished_ones_and_all_others_that_were_told_are(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        study.tell(ask(study, definition)[0], 0.5 if state is TrialState.COMPLETE else None, state=state)
    trial, params = ask(study, definition)
    assert [each.number for each in finished_trials(study)] == [0, 1, 2]
    interrupt(study, trial.number)
    assert [each.number for each in finished_trials(study)] == [0, 1, 2]
    again, _ = ask(study, definition)
    study.tell(again, 0.5)
    assert [each.number for each in finished_trials(study)] == [0, 1, 2, 4]


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_sweep_with_an_interrupted_trial_samples_what_an_uninterrupted_one_does(
    memory: RDBStorage, name: str
) -> None:
    whole, cut = (define(CONDITIONAL, study=study, sampler={"name": name}) for study in ("whole", "cut"))
    expected = evaluate(open_study(whole, memory), whole, 7)
    study = open_study(cut, memory)
    evaluate(study, cut, 2)
    trial, params = ask(study, cut)
    interrupt(study, trial.number)
    evaluate(study, cut, 2)
    trial, params = ask(study, cut)
    interrupt(study, trial.number)
    evaluate(study, cut, 3)
    assert [trial.params for trial in finished_trials(study)] == expected


# Recovered


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


def test_a_queued_trial_cut_short_while_it_is_sampled_keeps_its_hyperparameters(storage: RDBStorage) -> None:
    study = open_study(define(), storage)
    study.enqueue_trial({"optimizer.lr": 0.01})
    study.ask()
    interrupt(study, 0)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    assert study.trials[1].system_attrs["fixed_params"] == {"optimizer.lr": 0.01}


def test_a_place_is_taken_by_who_has_the_lower_number(storage: RDBStorage) -> None:
    definition = define()
    study = open_study(definition, storage)
    study.add_trial(SCORED)
    ask(study, definition)
    ask(study, definition)
    assert [places_taken(study, before=number) for number in (1, 2)] == [1, 2]
    withdraw(study, 2)
    assert (places_taken(study), len(finished_trials(study)), study.trials[2].state.name) == (2, 1, "FAIL")


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


def test_sampling_outside_a_storage_obeys_conditions_and_pins() -> None:
    params = sampled(define(CONDITIONAL, settings=("optimizer.lr=0.01",)), 20)
    assert {each["optimizer.lr"] for each in params} == {0.01}
    assert all(("optimizer.momentum" in each) == (each["optimizer.name"] == "sgd") for each in params)
    assert len({str(each) for each in params}) > 5
