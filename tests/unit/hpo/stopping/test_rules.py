"""The rules that stop a losing trial: each against its definition, and against Optuna's where Optuna has it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpo.stopping import epoch_rule, fold_rule
from hpo.stopping.field import Field, Runner
from hpo.study_config import StoppingConfig

NAN = float("nan")
Curves = Sequence[Sequence[float]]


def runner(curves: Curves, *, number: int = 99, epochs: int = 3) -> Runner:
    """A trial with these values of its folds; a fold that came to its last epoch has ended."""
    rows = [[*curve, *[NAN] * (epochs - len(curve))] for curve in curves]
    values = np.array(rows, dtype=float)
    return Runner(number=number, root=number, curves=values, finals=values[:, -1].copy(), num_epochs=epochs)


def field_of(*trials: Curves, epochs: int = 3) -> Field:
    field = Field(num_folds=len(trials[0]) if trials else 1, max_epochs=epochs)
    field.add([runner(curves, number=number, epochs=epochs) for number, curves in enumerate(trials)])
    return field


def stopped_in(field: Field, trial: Runner, fold: int, epoch: int, **config: Any) -> bool:
    return bool(epoch_rule(StoppingConfig(**config))(field, trial, fold, epoch))


def stopped_after(field: Field, trial: Runner, **config: Any) -> bool:
    return bool(fold_rule(StoppingConfig(**config))(field, trial))


# The field


def test_the_incumbent_is_the_best_trial_that_ran_all_its_folds() -> None:
    field = field_of([[0, 0, 0.5], [0, 0, 0.5]], [[0, 0, 0.9], [0.9]], [[0, 0, 0.7], [0, 0, 0.5]])
    assert field.incumbent is not None and field.incumbent.number == 2
    field.add([runner([[0, 0, 0.8], [0, 0, 0.8]], number=3)])
    assert field.incumbent.number == 3 and field.incumbent.mean == 0.8


def test_a_trial_that_violates_a_constraint_is_not_the_incumbent() -> None:
    field = field_of([[0, 0, 0.5], [0, 0, 0.5]])
    field.add([replace(runner([[0, 0, 0.9], [0, 0, 0.9]], number=1), is_feasible=False)])
    assert field.incumbent is not None and field.incumbent.number == 0


def test_a_trial_that_went_on_takes_the_place_of_the_one_it_took_up() -> None:
    field = field_of([[0, 0, 0.5], [0.9]], [[0, 0, 0.7], [0, 0, 0.7]])
    again = runner([[0, 0, 0.5], [0, 0, 0.95]], number=7)
    field.add([Runner(number=7, root=0, curves=again.curves, finals=again.finals, num_epochs=3)])
    assert (field.roots, len(field), field.runner(1).number) == ([1, 0], 2, 7)
    assert field.incumbent is not None and field.incumbent.number == 7


# Inside a fold


@pytest.mark.parametrize(("value", "stopped"), [(0.49, True), (0.5, False), (0.51, False)])
def test_what_is_below_the_median_of_the_others_is_stopped(value: float, stopped: bool) -> None:
    field = field_of([[0.1]], [[0.5]], [[0.9]])
    assert stopped_in(field, runner([[value]]), 0, 1, epochs="median", startup_trials=1) is stopped


def test_the_best_epoch_so_far_counts_and_what_others_reach_later_does_not() -> None:
    field = field_of([[0.5, 0.5, 0.9]])
    assert not stopped_in(field, runner([[0.6, 0.1]]), 0, 2, epochs="median", startup_trials=1)
    assert stopped_in(field_of([[0.9, 0.1]]), runner([[0.2, 0.5]]), 0, 2, epochs="median", startup_trials=1)


def test_a_fold_is_compared_with_the_same_fold_of_the_others() -> None:
    field = field_of([[0.9], [0.5]])
    assert not stopped_in(field, runner([[0.9], [0.6]]), 1, 1, epochs="median", startup_trials=1)
    assert stopped_in(field, runner([[0.9], [0.4]]), 1, 1, epochs="median", startup_trials=1)


@pytest.mark.parametrize(("startup", "stopped"), [(2, True), (3, False)])
def test_nothing_is_stopped_before_enough_others_came_as_far(startup: int, stopped: bool) -> None:
    field = field_of([[0.9]], [[0.9, 0.9]], [[0.9, 0.9]])
    assert stopped_in(field, runner([[0.1, 0.1]]), 0, 2, epochs="median", startup_trials=startup) is stopped


@pytest.mark.parametrize(("kept", "stopped"), [(20.0, True), (30.0, False)])
def test_percentile_lets_the_best_percent_go_on(kept: float, stopped: bool) -> None:
    field = field_of(*[[[value / 10]] for value in range(10)])
    trial = runner([[0.65]])  # 3 of 10 are better
    assert stopped_in(field, trial, 0, 1, epochs="percentile", percentile=kept, startup_trials=1) is stopped


@pytest.mark.parametrize("reduction_factor", [2, 3])
@pytest.mark.parametrize("min_epochs", [1, 2])
def test_asha_stops_as_optunas_successive_halving(min_epochs: int, reduction_factor: int) -> None:
    """Trials one after another, of one fold of 9 epochs: Optuna is asked at each epoch, as the rule is."""
    rng, epochs = random.Random(0), 9
    theirs = optuna.pruners.SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=reduction_factor)
    study = optuna.create_study(direction="maximize", pruner=theirs)
    field, ends = Field(num_folds=1, max_epochs=epochs), set()
    rule = epoch_rule(StoppingConfig(epochs="asha", min_epochs=min_epochs, reduction_factor=reduction_factor))
    for _ in range(60):
        trial = study.ask()
        ours = runner([[]], number=trial.number, epochs=epochs)
        for epoch in range(1, epochs + 1):
            ours.curves[0, epoch - 1] = value = rng.random()
            trial.report(value, epoch)
            is_stopped = bool(rule(field, ours, 0, epoch))
            assert is_stopped is trial.should_prune(), (trial.number, epoch)
            if is_stopped:
                break
        ends.add(epoch)
        study.tell(
            trial, state=TrialState.PRUNED if is_stopped else TrialState.COMPLETE, values=None if is_stopped else value
        )
        field.add([ours])
    assert len(ends) > 2, "trials ended at several rungs"


def test_hyperband_compares_a_trial_with_those_of_its_bracket_only() -> None:
    """Of 9 epochs, halving by 3: bracket 0 begins at epoch 1, bracket 1 at epoch 3."""
    field = field_of([[0.9]], [[0.1, 0.1, 0.1]], epochs=9)
    options: dict[str, Any] = {"epochs": "hyperband"}
    assert stopped_in(field, runner([[0.5]], number=2, epochs=9), 0, 1, **options)
    assert not stopped_in(field, runner([[0.5]], number=3, epochs=9), 0, 1, **options)
    assert not stopped_in(field, runner([[0.5] * 3], number=3, epochs=9), 0, 3, **options)
    assert stopped_in(field, runner([[0.05] * 3], number=3, epochs=9), 0, 3, **options)


@pytest.mark.parametrize(
    ("curve", "stopped"),
    [
        ([0.5, 0.4, 0.4], True),
        ([0.5, 0.4, 0.6], False),  # it rose
        ([0.9, 0.4, 0.4], False),  # ahead of the best trial
        ([0.5, 0.4], False),  # too early to say
    ],
)
def test_patience_stops_a_curve_that_rests_behind_the_incumbents(curve: list[float], stopped: bool) -> None:
    field = field_of([[0.6, 0.7, 0.8, 0.8]], epochs=4)
    trial = runner([curve], epochs=4)
    assert stopped_in(field, trial, 0, len(curve), epochs="patience", patience=2) is stopped


# Between folds

INCUMBENT: Curves = [[0.6], [0.8], [0.7], [0.9]]  # mean 0.75, worst 0.6


@pytest.mark.parametrize(
    ("rule", "scores", "stopped"),
    [
        ("aggressive", [0.7], True),
        ("aggressive", [0.7, 0.81], False),
        ("forgiving", [0.61], False),
        ("forgiving", [0.61, 0.58], True),
        ("none", [0.0], False),
    ],
)
def test_aggressive_compares_with_the_incumbents_mean_and_forgiving_with_its_worst_fold(
    rule: str, scores: list[float], stopped: bool
) -> None:
    trial = runner([[score] for score in scores] + [[]] * (4 - len(scores)), epochs=1)
    assert stopped_after(field_of(INCUMBENT, epochs=1), trial, folds=rule) is stopped


def test_median_compares_means_over_the_same_folds() -> None:
    field = field_of([[0.9], [0.1]], [[0.5], [0.9]], [[0.1], []], epochs=1)
    second = runner([[], [0.4]], epochs=1)
    assert stopped_after(field, second, folds="median", startup_trials=2)
    assert not stopped_after(field, runner([[0.5], []], epochs=1), folds="median", startup_trials=2)
    assert not stopped_after(field, second, folds="median", startup_trials=3)


def test_wilcoxon_stops_as_optunas_pruner() -> None:
    rng, stops = random.Random(0), 0
    for _ in range(200):
        best, own = ([rng.gauss(mean, 0.1) for _ in range(8)] for mean in (0.6, rng.choice([0.4, 0.55])))
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            theirs = optuna.pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=2)
        study = optuna.create_study(direction="maximize", pruner=theirs)
        study.add_trial(create_trial(value=float(np.mean(best)), intermediate_values=dict(enumerate(best, 1))))
        trial, field = study.ask(), field_of([[value] for value in best], epochs=1)
        for count, value in enumerate(own, start=1):
            trial.report(value, count)
            ours = runner([[each] for each in own[:count]] + [[]] * (8 - count), epochs=1)
            is_stopped = stopped_after(field, ours, folds="wilcoxon", p_value=0.05)
            assert is_stopped is trial.should_prune()
            stops += is_stopped
    assert stops > 50


@pytest.mark.parametrize("rule", ["aggressive", "forgiving", "wilcoxon", "median"])
def test_the_first_trial_is_never_stopped(rule: str) -> None:
    trial = runner([[0.0], []], epochs=1)
    assert not stopped_after(Field(num_folds=2, max_epochs=1), trial, folds=rule)


@pytest.mark.parametrize("rule", ["median", "percentile", "asha", "hyperband", "patience"])
def test_the_first_trial_is_never_stopped_in_a_fold(rule: str) -> None:
    assert not stopped_in(Field(num_folds=1, max_epochs=9), runner([[0.0] * 4], epochs=9), 0, 4, epochs=rule)


# What a study may say


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"percentile": 10.0}, "stopping.percentile is for the rule percentile"),
        ({"folds": "none", "risk": 0.2}, "stopping.risk is for the rule dominance"),
        ({"folds": "median", "keep": 0.5}, "stopping.keep is for the rule halving"),
        ({"epochs": "median", "min_epochs": 2}, "stopping.min_epochs is for the rule asha or hyperband"),
    ],
)
def test_an_option_of_a_rule_that_was_not_chosen_is_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StoppingConfig(**config)


def test_a_stored_study_has_every_option_and_is_read_again() -> None:
    config = StoppingConfig(epochs="none", folds="forgiving", audit=0.5)
    assert StoppingConfig(**config.model_dump()) == config
