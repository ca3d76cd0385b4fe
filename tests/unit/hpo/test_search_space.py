"""From the search space of a study file to Optuna's distributions, sampled values and grids."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from pydantic import ValidationError

from hpo.search_space import MAX_GRID, distribution, grid, parents_first, sample, space_problems
from hpo.study_config import ParameterConfig, parse_duration
from training.config import JobConfig, Layer

OPTIMIZER = {"choice": ["adamw", "sgd"]}


def parameter(**values: Any) -> ParameterConfig:
    return ParameterConfig.model_validate(values)


def space(**parameters: dict[str, Any]) -> dict[str, ParameterConfig]:
    """Keyword arguments are keys with ``__`` for the dot."""
    return {name.replace("__", "."): parameter(**values) for name, values in parameters.items()}


def problems(**parameters: dict[str, Any]) -> list[str]:
    """What is wrong with a space against the default job; the place of each parameter is its name in brackets."""
    searched = space(**parameters)
    layer = Layer(places={(name,): f"[{name}]" for name in searched})
    return [str(problem) for problem in space_problems(searched, JobConfig(), layer)]


# Distributions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"float": [1e-4, 1e-1], "log": True}, FloatDistribution(1e-4, 1e-1, log=True)),
        ({"float": [0, 1], "step": 0.25}, FloatDistribution(0.0, 1.0, step=0.25)),
        ({"int": [1, 9]}, IntDistribution(1, 9)),
        ({"int": [1, 9], "step": 2}, IntDistribution(1, 9, step=2)),
        ({"int": [1, 64], "log": True}, IntDistribution(1, 64, log=True)),
        ({"choice": [16, "a", None, True, 0.5]}, CategoricalDistribution((16, "a", None, True, 0.5))),
    ],
)
def test_a_parameter_is_sampled_from_what_it_is_described_as(
    values: dict[str, Any], expected: optuna.distributions.BaseDistribution
) -> None:
    assert distribution(parameter(**values)) == expected
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    sample(trial, {"x": parameter(**values)}, {})
    assert trial.distributions == {"x": expected}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give exactly one of float"),
        ({"float": [0, 1], "choice": [1]}, "give exactly one of float"),
        ({"float": [1]}, "at least 2 items"),
        ({"int": [1, 2, 3]}, "at most 2 items"),
        ({"int": [1, 2.5]}, "valid integer"),
        ({"int": [1, 2**53 + 1]}, "less than or equal to 9007199254740992"),
        ({"choice": []}, "at least 1 item"),
        ({"float": [2, 1]}, "impossible range: 2.0 is above 1.0"),
        ({"float": [0, 1], "log": True}, "lower bound above zero, not 0.0"),
        ({"float": [1, 2], "log": True, "step": 0.5}, "log and step cannot be used together"),
        ({"choice": [1], "log": True}, "log and step belong to float and int"),
        ({"choice": [1], "step": 1}, "log and step belong to float and int"),
        ({"int": [1, 9], "step": 0.5}, "the step of an int must be whole, not 0.5"),
        ({"int": [1, 10], "step": 2}, "steps of 2 from 1 arrive at 9, not at 10; write that"),
        ({"float": [0.1, 0.5], "step": 0.3}, "steps of 0.3 from 0.1 arrive at 0.4, not at 0.5; write that"),
        ({"float": [0, 1e300], "step": 1e-5}, "are too many"),
        ({"float": [0, 1], "step": 0}, "greater than 0"),
        ({"float": [0, float("inf")]}, "finite number"),
        ({"float": [0, 1], "steps": 2}, "Extra inputs"),
    ],
)
def test_an_impossible_parameter_is_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parameter(**values)


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0.1, 0.7, 0.1), (0.0, 0.3, 0.1), (1e-5, 9e-5, 1e-5), (0.5, 0.5, 0.1)]
)
def test_steps_that_arrive_are_not_refused_for_the_rounding_of_floats(low: float, high: float, step: float) -> None:
    assert parameter(float=[low, high], step=step).bounds == [low, high]


# Sampling


def test_values_are_sampled_at_full_precision() -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    values = sample(trial, space(lr={"float": [1e-4, 1e-1], "log": True}), {})
    assert values == trial.params
    assert repr(values["lr"]) != repr(round(values["lr"], 7))


def test_a_parameter_is_sampled_only_where_its_condition_holds() -> None:
    searched = space(momentum={"float": [0, 1], "when": {"name": "sgd"}}, name=OPTIMIZER)
    assert sample(FixedTrial({"name": "adamw", "momentum": 0.5}), searched, {}) == {"name": "adamw"}
    assert sample(FixedTrial({"name": "sgd", "momentum": 0.5}), searched, {}) == {"name": "sgd", "momentum": 0.5}


def test_a_condition_may_name_several_values_and_several_keys() -> None:
    searched = space(x={"int": [1, 9], "when": {"a": [1, 2], "b": "yes"}})
    held = [
        (a, b) for a in (1, 2, 3) for b in ("yes", "no") if sample(FixedTrial({"x": 5}), searched, {"a": a, "b": b})
    ]
    assert held == [(1, "yes"), (2, "yes")]


def test_a_condition_on_what_was_not_sampled_itself_does_not_hold() -> None:
    searched = space(
        a={"choice": [1, 2]}, b={"choice": [1, 2], "when": {"a": 1}}, c={"choice": [1, 2], "when": {"b": [1, 2]}}
    )
    assert sample(FixedTrial({"a": 2, "b": 1, "c": 1}), searched, {}) == {"a": 2}
    assert sample(FixedTrial({"a": 1, "b": 1, "c": 1}), searched, {}) == {"a": 1, "b": 1, "c": 1}


def test_a_sampled_value_counts_and_not_the_fixed_one() -> None:
    searched = space(name=OPTIMIZER, momentum={"float": [0, 1], "when": {"name": "sgd"}})
    assert "momentum" not in sample(FixedTrial({"name": "adamw", "momentum": 0.5}), searched, {"name": "sgd"})


def test_parents_come_first_and_the_rest_as_written() -> None:
    searched = space(
        z={"choice": [1]}, c={"choice": [1], "when": {"b": 1}}, b={"choice": [1], "when": {"a": 1}}, a={"choice": [1]}
    )
    assert parents_first(searched) == ["z", "a", "b", "c"]


# Grids


def test_a_grid_has_every_value_of_every_parameter() -> None:
    assert grid(
        space(
            a={"choice": ["x", None, 2]},
            b={"int": [1, 7], "step": 3},
            c={"int": [3, 5]},
            d={"float": [0.1, 0.7], "step": 0.1},
        ),
        {},
    ) == {"a": ["x", None, 2], "b": [1, 4, 7], "c": [3, 4, 5], "d": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}


def test_every_value_of_a_grid_is_one_that_the_distribution_has() -> None:
    searched = space(a={"float": [0.1, 0.7], "step": 0.1}, b={"float": [1e-5, 9e-5], "step": 1e-5}, c={"int": [2, 8]})
    for name, values in grid(searched, {}).items():
        known = distribution(searched[name])
        assert all(known._contains(known.to_internal_repr(value)) for value in values)
        assert all(type(value) is (int if name == "c" else float) for value in values)


def test_a_pinned_parameter_is_one_point_of_the_grid() -> None:
    assert grid(space(a={"choice": [1, 2]}, b={"float": [0, 1]}), {"b": 0.3}) == {"a": [1, 2], "b": [0.3]}


def test_a_grid_refuses_a_float_without_a_step_and_a_condition() -> None:
    with pytest.raises(ValueError, match="b: a grid needs a choice, an int or a float with a step"):
        grid(space(a={"choice": [1]}, b={"float": [0, 1]}), {})
    for conditional in ({"choice": [1, 2]}, {"int": [1, 2]}, {"float": [0, 1], "step": 0.5}):
        with pytest.raises(ValueError, match="b: a grid has no conditions"):
            grid(space(a={"choice": [1]}, b={**conditional, "when": {"a": 1}}), {})


def test_a_grid_too_large_to_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 1000000000 points is more than 100000"):
        grid(space(a={"int": [1, 10**9]}), {})
    with pytest.raises(ValueError, match="a grid of 1000000 points is more than 100000"):
        grid(space(**{name: {"int": [1, 100]} for name in "abc"}), {})
    with pytest.raises(ValueError, match="a: 1000000001 values are more"):
        grid(space(a={"float": [0, 1], "step": 1e-9}), {})
    assert len(grid(space(a={"int": [1, MAX_GRID]}), {})["a"]) == MAX_GRID


# Against the job


def test_a_space_that_fits_the_job_has_no_problems() -> None:
    assert (
        problems(
            optimizer__lr={"float": [1e-5, 1], "log": True},
            optimizer__name=OPTIMIZER,
            optimizer__momentum={"float": [0, 0.99], "when": {"optimizer.name": "sgd"}},
            training__epochs={"int": [1, 3], "when": {"task": "text_classification"}},
            data__max_samples={"choice": [None, 100]},
        )
        == []
    )


def test_an_unknown_key_is_told_with_the_nearest_one() -> None:
    assert problems(optimizer__learning_rte={"float": [0, 1]}, optimizer__lrr={"float": [0, 1]})[1] == (
        "[optimizer.lrr]: optimizer.lrr is not in the configuration; did you mean 'optimizer.lr'?"
    )


@pytest.mark.parametrize("key", ["optimizer", "optimizer.", "", ".", "optimizer.lr.x"])
def test_a_key_that_is_no_single_value_is_not_in_the_configuration(key: str) -> None:
    assert f"[{key}]: {key} is not in the configuration" in problems(**{key: {"float": [0.1, 1]}})[0]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("optimizer.lr", {"float": [0, 1]}, "cannot be 0.0: optimizer.lr must be greater than 0, not 0.0"),
        ("optimizer.momentum", {"float": [0.5, 1]}, "cannot be 1.0: optimizer.momentum must be less than 1, not 1.0"),
        ("training.epochs", {"float": [1, 2]}, "cannot be 1.0: training.epochs must be a valid integer, not 1.0"),
        ("optimizer.name", {"choice": ["sgd", "lion"]}, "'lion': optimizer.name must be 'adamw' or 'sgd', not 'lion'"),
        ("task", {"choice": ["nonsense"]}, "cannot be 'nonsense': task 'nonsense' is not one of"),
    ],
)
def test_a_value_that_the_configuration_cannot_take_is_a_problem(
    key: str, values: dict[str, Any], message: str
) -> None:
    found = problems(**{key: values})
    assert found[0].startswith(f"[{key}]: {key} cannot be") and message in found[0]


def test_a_problem_that_several_choices_share_is_told_for_each_value() -> None:
    assert len(problems(training__epochs={"choice": [-2, -1, 1]})) == 2


def test_rules_between_fields_do_not_judge_values_that_are_searched_together() -> None:
    assert (
        problems(
            training__global_batch_size={"choice": [30, 60]},
            training__accumulate_grad_batches={"choice": [3, 5]},
        )
        == []
    )


def test_the_folds_cannot_be_searched() -> None:
    assert problems(cross_validation__folds={"int": [2, 5]}) == [
        "[cross_validation.folds]: cross_validation.folds cannot be searched: trials are compared on the same folds"
    ]


def test_a_condition_that_can_never_hold_is_a_problem() -> None:
    assert problems(
        optimizer__name=OPTIMIZER, optimizer__momentum={"float": [0, 0.9], "when": {"optimizer.name": "sdg"}}
    ) == [
        "[optimizer.momentum]: optimizer.momentum: when: optimizer.name is never 'sdg'; it is one of ['adamw', 'sgd']"
    ]
    assert problems(optimizer__momentum={"float": [0, 0.9], "when": {"optimizer.nam": "sgd"}}) == [
        "[optimizer.momentum]: optimizer.momentum: when: optimizer.nam is not in the configuration;"
        " did you mean 'optimizer.name'?"
    ]


def test_conditions_in_a_circle_are_a_problem_of_each_parameter_in_it() -> None:
    found = problems(
        optimizer__lr={"float": [0.1, 1], "when": {"optimizer.momentum": 0.5}},
        optimizer__momentum={"float": [0.1, 0.9], "when": {"optimizer.lr": 0.5}},
        optimizer__weight_decay={"float": [0.1, 0.9], "when": {"optimizer.weight_decay": 0.5}},
        training__epochs={"int": [1, 2]},
    )
    assert [text.rpartition(": ")[0] for text in found] == [
        f"[optimizer.{name}]: optimizer.{name}" for name in ("lr", "momentum", "weight_decay")
    ]


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86400), ("90", 90), (" 2 h ", 7200), (5, 5)],
)
def test_a_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2w", "-5m", "0s", "1e3s", 0, -1, True, None, [], float("nan"), "2h 5m"])
def test_what_is_no_duration_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 90s, 30m, 2h or 1d"):
        parse_duration(text)
