"""What is sampled: again when continued, under conditions, with pins, and from a grid."""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import pytest
from optuna.storages import RDBStorage

from hpo.sampling import grid_size, sampled, sampler_for
from hpo.storage import open_storage
from hpo.study import load_study, open_study
from tests.unit.hpo.study.definitions import CONDITIONAL, LR, MOMENTUM, NAME, close, define, evaluate

GRID = {"optimizer.name": NAME, "training.epochs": {"int": [1, 3]}, "optimizer.lr": {"float": [0.1, 0.3], "step": 0.1}}
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


def test_sampling_outside_a_storage_obeys_conditions_and_pins() -> None:
    params = sampled(define(CONDITIONAL, settings=("optimizer.lr=0.01",)), 20)
    assert {each["optimizer.lr"] for each in params} == {0.01}
    assert all(("optimizer.momentum" in each) == (each["optimizer.name"] == "sgd") for each in params)
    assert len({str(each) for each in params}) > 5


@pytest.mark.parametrize(("rule", "jointly"), [("halving", set()), ("none", {"optimizer.lr", "optimizer.name"})])
def test_where_trials_are_halved_each_parameter_is_modelled_by_itself(
    memory: RDBStorage, rule: str, jointly: set[str]
) -> None:
    definition = define({"optimizer.lr": LR, "optimizer.name": NAME}, sampler={"name": "tpe"}, rule=rule)
    study = open_study(definition, memory)
    evaluate(study, definition, 4)
    sampler, trial = sampler_for(definition, 4), study.get_trials()[0]
    sampler.before_trial(study, trial)
    assert {*sampler.infer_relative_search_space(study, trial)} == jointly
