"""Merging layers and validating the result: who wins, and what the user is told and where."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.config import (
    JobConfig,
    Layer,
    assign,
    find_file,
    flatten,
    job_config,
    keys_at,
    merge,
    parse_layer,
    settings_layer,
    suggestion,
)
from training.errors import ConfigError


def problems(*texts: str, chosen: tuple[str, ...] = ()) -> list[str]:
    """The problems of YAML texts merged in order, called 0.yaml, 1.yaml, ..., and of ``--set`` arguments."""
    layers = [parse_layer(text, name=f"{number}.yaml") for number, text in enumerate(texts)]
    with pytest.raises(ConfigError) as caught:
        job_config(merge([*layers, settings_layer(chosen)]))
    return str(caught.value).splitlines()


# Merging

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["", "a"]) | st.lists(st.integers(), max_size=2)
"""No mappings: what is a mapping in one layer is one in every layer here."""


def mappings(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Layers over the same few keys; a key's first letter says whether it holds a mapping or a leaf."""
    leaves = st.dictionaries(st.sampled_from(["leaf_1", "leaf_2"]), LEAVES)
    if depth == 0:
        return leaves
    inner = st.dictionaries(st.sampled_from(["map_1", "map_2"]), mappings(depth - 1))
    return st.builds(lambda left, right: {**left, **right}, leaves, inner)


def layers(values: dict[str, Any], name: str) -> Layer:
    return Layer(values, {tuple(key.split(".")): f"{name}:{key}" for key, _ in flatten(values)})


@PATIENT
@given(st.lists(mappings(2), max_size=4))
def test_each_leaf_comes_from_the_last_layer_that_has_it(written: list[dict[str, Any]]) -> None:
    merged = merge(layers(values, str(number)) for number, values in enumerate(written))
    expected: dict[str, tuple[Any, str]] = {}
    for number, values in enumerate(written):
        expected |= {key: (value, f"{number}:{key}") for key, value in flatten(values) if value != {}}
    leaves = {key: value for key, value in flatten(merged.values) if value != {}}
    assert {key: (leaves[key], merged.place_of(tuple(key.split(".")))) for key in leaves} == expected


@PATIENT
@given(mappings(2), mappings(2), mappings(2))
def test_merging_is_associative(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    a, b, c = layers(first, "a"), layers(second, "b"), layers(third, "c")
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([a, b, c])


@PATIENT
@given(mappings(2), mappings(2))
def test_merging_changes_no_layer(first: dict[str, Any], second: dict[str, Any]) -> None:
    before = copy.deepcopy((first, second))
    merged = merge([Layer(first), Layer(second)])
    merged.values.setdefault("map_1", {})["new"] = 1
    assert (first, second) == before


def test_merging_nothing_is_the_empty_layer() -> None:
    assert merge([]) == Layer()


def test_a_leaf_replaces_a_mapping_and_a_mapping_a_leaf() -> None:
    assert merge([Layer({"a": {"b": 1}}), Layer({"a": 2})]).values == {"a": 2}
    assert merge([Layer({"a": 2}), Layer({"a": {"b": 1}})]).values == {"a": {"b": 1}}


def test_a_list_is_replaced_and_not_extended() -> None:
    assert merge([Layer({"a": [1, 2]}), Layer({"a": [3]})]).values == {"a": [3]}


# --set


def test_a_setting_is_a_yaml_value_at_a_path() -> None:
    layer = settings_layer(["optimizer.lr=1e-4", "data.name = it's, x.csv", "model={a: [1, no]}", "data.subset="])
    assert layer.values == {
        "optimizer": {"lr": 1e-4},
        "data": {"name": "it's, x.csv", "subset": None},
        "model": {"a": [1, "no"]},
    }
    assert layer.problems == []


def test_the_last_of_two_settings_wins_and_others_are_kept() -> None:
    layer = settings_layer(["optimizer.lr=1", "optimizer={momentum: 0.5}", "optimizer.lr=2"])
    assert layer.values == {"optimizer": {"lr": 2, "momentum": 0.5}}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert settings_layer(["data.name=a=b"]).values == {"data": {"name": "a=b"}}


@pytest.mark.parametrize("setting", ["", "a", "=1", ".a=1", "a.=1", "a..b=1", " =1"])
def test_a_setting_without_key_or_value_is_a_problem(setting: str) -> None:
    layer = settings_layer(["seed=1", setting])
    assert layer.values == {"seed": 1}
    assert [str(problem) for problem in layer.problems] == [f"--set {setting}: must read key.path=value"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a=[1", "not valid YAML"),
        ("a=b: c", "not valid YAML"),
        ("a=!!str 1", "tag tag:yaml.org,2002:str is not allowed"),
        ("a={b: 1, b: 2}", "key 'b' stands twice"),
        ("a=1\nb: 2", "must be one value"),
        ("a=\udc80", "is not valid Unicode text"),
        ("a=" + "[" * 50 + "]" * 50, "nested deeper than 50 levels"),
        (".".join(["a"] * 51) + "=1", "nested deeper than 50 levels"),
        (".".join(["a"] * 20_000) + "=1", "nested deeper than 50 levels"),
        (".".join(["a"] * 30) + "=" + "[" * 21 + "]" * 21, "nested deeper than 50 levels"),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_a_bad_value_of_a_setting_is_a_problem_of_that_setting(setting: str, message: str) -> None:
    found = [problem for problem in settings_layer([setting]).problems]
    assert [problem.place for problem in found] == [f"--set {setting}"]
    assert message in found[0].message


def test_what_is_wrong_inside_a_setting_is_placed_there_and_not_where_it_was_before() -> None:
    base = "optimizer:\n  lr: 0.1\n  betas: [0.9, 0.9]\n"
    assert problems(base, chosen=("optimizer={lr: -1}",)) == [
        "--set optimizer={lr: -1}: optimizer.lr must be greater than 0, not -1"
    ]
    assert problems(base, chosen=("optimizer.betas=[0.9, 2]",)) == [
        "--set optimizer.betas=[0.9, 2]: optimizer.betas.1 must be less than 1, not 2"
    ]


# Problems


def test_an_unknown_key_is_placed_and_the_nearest_one_named() -> None:
    assert problems("seed: 0\n\ndistributed:\n  devcies: 2\n") == [
        "0.yaml:4: distributed.devcies is not a known key; did you mean 'devices'?"
    ]


def test_an_unknown_key_like_no_other_gets_the_list_of_known_ones() -> None:
    assert problems("output: {zzz: 1}") == [
        "0.yaml:1: output.zzz is not a known key; known: keep_checkpoint, keep_predictions, measure, pause_after, root,"
        " save_model"
    ]


def test_all_problems_are_told_at_once_each_in_the_layer_it_comes_from() -> None:
    found = problems(
        "optimizer:\n  lr: 0\n  lr: fast\ntraining: {epochs: -1}\n",
        "data:\n  max_samples: many\ntraning: {}\n",
        chosen=("seed=-1", "oops"),
    )
    assert sorted(found) == [
        "--set oops: must read key.path=value",
        "--set seed=-1: seed must be greater than or equal to 0, not -1",
        "0.yaml:3: key 'lr' stands twice (first at 0.yaml:2); keep one",
        "0.yaml:3: optimizer.lr must be a valid number, not 'fast'",
        "0.yaml:4: training.epochs must be greater than or equal to 0, not -1",
        "1.yaml:2: data.max_samples must be a valid integer, not 'many'",
        "1.yaml:3: traning is not a known key; did you mean 'training'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {lr: '0.1'}", "optimizer.lr must be a valid number, not '0.1'"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be a finite number, not nan"),
        ("training: {epochs: 2.0}", "training.epochs must be a valid integer, not 2.0"),
        ("training: {epochs: true}", "training.epochs must be a valid integer, not True"),
        ("cross_validation: {stratified: no}", "cross_validation.stratified must be a valid boolean, not 'no'"),
        ("optimizer: {name: adam}", "optimizer.name must be 'adamw' or 'sgd', not 'adam'"),
        ("optimizer: 3", "optimizer must be a mapping of keys to values, not 3"),
        ("optimizer:", "optimizer must be a mapping of keys to values, not None"),
        (
            "cross_validation: {folds: 2, fold: 2}",
            "cross_validation: fold must be below folds x repeats = 2, not 2",
        ),
        ("cross_validation: {seed: 4294967296}", "cross_validation.seed must be less than 4294967296, not 4294967296"),
    ],
)
def test_a_wrong_value_is_told_with_key_rule_and_value(text: str, message: str) -> None:
    assert problems(text) == [f"0.yaml:1: {message}"]


def test_a_long_value_is_cut_in_the_message() -> None:
    (found,) = problems(f"optimizer: {{lr: {'x' * 5000}}}")
    assert len(found) < 150 and found.endswith("xxx...")


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("0", "distributed.devices must be 'auto', greater than or equal to 1 or a valid list, not 0"),
        ("all", "distributed.devices must be 'auto', a valid integer or a valid list, not 'all'"),
        ("{a: 1}", "distributed.devices must be 'auto', a valid integer or a valid list, not {'a': 1}"),
        ("[0, -1]", "distributed.devices.1 must be greater than or equal to 0, not -1"),
        ("[0, x]", "distributed.devices.1 must be a valid integer, not 'x'"),
    ],
)
def test_a_value_that_fits_no_alternative_is_one_problem_naming_them_all(devices: str, message: str) -> None:
    assert problems(f"distributed:\n  devices: {devices}\n") == [f"0.yaml:2: {message}"]


def test_an_item_of_a_list_has_the_place_of_its_own_line() -> None:
    assert problems("optimizer:\n  betas:\n  - 0.9\n  - 1.5\n") == [
        "0.yaml:4: optimizer.betas.1 must be less than 1, not 1.5"
    ]


def test_an_unknown_task_is_told_with_the_known_ones_and_the_way_to_an_own_one() -> None:
    (found,) = problems("\ntask: translation\n")
    assert found == (
        "0.yaml:2: task 'translation' is not one of text_classification, image_classification,"
        " language_modeling, embedding; write your own as 'package.module:Class'"
    )
    assert job_config(Layer({"task": "my.module:Task"})).task == "my.module:Task"


def test_a_suggestion_is_the_nearest_word_or_all_of_them_or_nothing() -> None:
    assert suggestion("acuracy", ["loss", "accuracy"]) == "; did you mean 'accuracy'?"
    assert suggestion("xyz", ["loss", "accuracy"]) == "; known: accuracy, loss"
    assert suggestion("xyz", []) == ""


def test_the_keys_of_a_section_are_found_by_path() -> None:
    known = ["root", "save_model", "keep_checkpoint", "pause_after", "keep_predictions", "measure"]
    assert keys_at(JobConfig, ("output",)) == known
    assert "optimizer" in keys_at(JobConfig, ())
    assert keys_at(JobConfig, ("seed",)) == keys_at(JobConfig, ("nothing", "here")) == []


# The job


def test_an_empty_layer_is_the_job_of_all_defaults() -> None:
    assert job_config(Layer()) == JobConfig()


def test_keys_of_the_model_that_we_do_not_know_go_to_its_architecture() -> None:
    assert job_config(parse_layer("model: {hidden_size: 32}", name="f")).model.model_dump()["hidden_size"] == 32


def test_with_values_is_a_checked_copy_and_leaves_the_original() -> None:
    job = JobConfig()
    changed = job.with_values({"cross_validation.fold": 2, "optimizer.lr": 0.5, "model.hidden_size": 8})
    assert (changed.cross_validation.fold, changed.optimizer.lr) == (2, 0.5)
    assert changed.model.model_dump()["hidden_size"] == 8
    assert job == JobConfig()
    with pytest.raises(ValidationError):
        job.with_values({"optimizer.lr": -1.0})


def test_a_job_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JobConfig().training.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize(("world_size", "accumulate", "expected"), [(1, 1, 32), (2, 1, 16), (2, 4, 4), (32, 1, 1)])
def test_the_micro_batch_is_the_global_batch_shared_by_ranks_and_steps(
    world_size: int, accumulate: int, expected: int
) -> None:
    job = JobConfig().with_values({"training.accumulate_grad_batches": accumulate})
    assert job.batch_plan(world_size).micro_batch_size == expected


@pytest.mark.parametrize(
    ("batch", "world_size", "limit", "micro_batch", "parts"),
    [
        (32, 1, 8, 8, 4),
        (32, 2, 8, 8, 2),
        (32, 8, 8, 4, 1),
        (30, 1, 8, 6, 5),
        (7, 1, 4, 1, 7),
        (32, 1, 100, 32, 1),
        (999_999_937, 1, 8, 1, 999_999_937),  # a prime
        (999_999_937, 1, 8, 1, 999_999_937),
    ],
)
def test_accumulation_follows_from_the_largest_micro_batch(
    batch: int, world_size: int, limit: int, micro_batch: int, parts: int
) -> None:
    changes = {"training.global_batch_size": batch, "training.max_micro_batch_size": limit}
    plan = JobConfig().with_values(changes).batch_plan(world_size)
    assert (plan.micro_batch_size, plan.num_micro_batches) == (micro_batch, parts)
    assert world_size * plan.micro_batch_size * plan.num_micro_batches == batch


def test_an_accumulation_that_leaves_micro_batches_too_large_is_refused() -> None:
    job = JobConfig().with_values({"training.accumulate_grad_batches": 2, "gradient_cache.chunk_size": 6})
    with pytest.raises(
        ConfigError, match="2 micro-batches of 16 samples are larger than the limit of 6.*use 6 or more"
    ):
        job.batch_plan(1)


@pytest.mark.parametrize(("batch", "ranks", "nearest"), [(32, 3, "30 or 33"), (2, 4, "4"), (33, 2, "32 or 34")])
def test_a_batch_that_cannot_be_shared_exactly_is_refused_with_the_nearest(
    batch: int, ranks: int, nearest: str
) -> None:
    job = JobConfig().with_values({"training.global_batch_size": batch})
    with pytest.raises(ConfigError) as caught:
        job.batch_plan(ranks)
    assert str(caught.value).endswith(f"{batch} cannot be shared exactly by {ranks} ranks; nearest: {nearest}")


@pytest.mark.parametrize(("batch", "parts", "nearest"), [(32, 3, "30 and 33"), (2, 4, "4")])
def test_a_batch_that_does_not_divide_into_micro_batches_is_refused(batch: int, parts: int, nearest: str) -> None:
    text = f"training: {{global_batch_size: {batch}, accumulate_grad_batches: {parts}}}"
    assert problems(text) == [
        f"0.yaml:1: training.global_batch_size {batch} is not a multiple of accumulate_grad_batches {parts};"
        f" nearest: {nearest}"
    ]


# Paths


def test_assign_makes_mappings_on_the_way_and_replaces_leaves() -> None:
    values: dict[str, Any] = {"a": 1, "b": {"c": 2}}
    assign(values, ("a", "x", "y"), 3)
    assign(values, ("b", "d"), 4)
    assert values == {"a": {"x": {"y": 3}}, "b": {"c": 2, "d": 4}}


def test_flatten_gives_every_leaf_its_dotted_path_and_keeps_empty_mappings() -> None:
    assert dict(flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}})) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_a_file_is_looked_for_here_then_beside_then_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "config").mkdir(parents=True)
    monkeypatch.chdir(here)
    checkout = find_file("config/train.yaml")
    assert checkout is not None and checkout.is_absolute()
    (there / "config/train.yaml").touch()
    assert find_file("config/train.yaml", beside=there / "study.yaml") == there / "config/train.yaml"
    (here / "config/train.yaml").touch()
    assert find_file("config/train.yaml", beside=there / "study.yaml") == Path("config/train.yaml")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udc80", "", ".", "config"])
def test_a_name_that_can_be_no_file_is_not_found(name: str) -> None:
    assert find_file(name) is None


@pytest.mark.parametrize("value", [".nan", "-.inf", "[1.0, {a: .nan}]"])
def test_a_key_of_the_architecture_is_no_number_that_is_none(value: str) -> None:
    assert problems(f"model:\n  hidden_size: {value}\n") == ["0.yaml:1: model: hidden_size is not a finite number"]
