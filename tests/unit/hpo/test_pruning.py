"""When a losing trial is stopped: a (fold, epoch) axis that is the same in every trial, and the median rule on it."""

from __future__ import annotations

import random
from statistics import median
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.definition import StudyDefinition
from hpo.pruning import Pruner, StepAxis
from hpo.study_config import StoppingConfig, StudyConfig
from training.config import JobConfig, Layer

AXIS = StepAxis(3)


def study_of(*curves: dict[tuple[int, int], float], state: TrialState = TrialState.COMPLETE) -> optuna.Study:
    """A study whose trials reported these values by (fold, epoch)."""
    study = optuna.create_study(storage=RDBStorage("sqlite://"))
    for curve in curves:
        values = {AXIS.step(fold, epoch): value for (fold, epoch), value in curve.items()}
        study.add_trial(create_trial(state=state, value=0.0, intermediate_values=values))
    return study


def stops(
    study: optuna.Study, curve: dict[tuple[int, int], float], *, maximize: bool = True, startup: int = 1, **config: Any
) -> bool:
    """Whether a trial with `curve` is stopped after its last value."""
    pruner = Pruner(study, StoppingConfig(startup_trials=startup, **config), AXIS, maximize=maximize)
    fold, epoch = max(curve)
    return bool(pruner.reason_to_stop({AXIS.step(*at): value for at, value in curve.items()}, fold, epoch))


def definition(**search_space: Any) -> StudyDefinition:
    config = StudyConfig.model_validate(
        {
            "study": "s",
            "objective": {"metric": "accuracy", "direction": "maximize"},
            "search_space": {"optimizer.lr": {"float": [0.1, 1]}, **search_space},
        }
    )
    job = JobConfig().with_values({"training.epochs": 4})
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer(), space=Layer())


# The axis


def test_every_fold_and_epoch_has_a_step_of_its_own_in_order() -> None:
    steps = [AXIS.step(fold, epoch) for fold in range(4) for epoch in (1, 2, 3)]
    assert steps == list(range(1, 13))


def test_the_steps_of_a_fold_begin_at_its_first_epoch() -> None:
    assert list(AXIS.steps(0, 2)) == [1, 2]
    assert list(AXIS.steps(2, 3)) == [7, 8, 9]


@pytest.mark.parametrize(
    ("searched", "epochs"),
    [
        ({}, 4),
        ({"training.epochs": {"int": [1, 9]}}, 9),
        ({"training.epochs": {"choice": [2, 12, 6]}}, 12),
    ],
)
def test_the_axis_has_room_for_the_longest_trial_of_the_study(searched: dict[str, Any], epochs: int) -> None:
    assert definition(**searched).max_epochs == epochs


# The median


@pytest.mark.parametrize(("value", "stopped"), [(0.49, True), (0.5, False), (0.51, False)])
def test_a_value_below_the_median_of_the_others_is_stopped(value: float, stopped: bool) -> None:
    study = study_of({(0, 1): 0.1}, {(0, 1): 0.5}, {(0, 1): 0.9})
    assert stops(study, {(0, 1): value}) is stopped


@pytest.mark.parametrize(("value", "stopped"), [(0.49, False), (0.5, False), (0.51, True)])
def test_a_value_above_the_median_is_stopped_when_less_is_better(value: float, stopped: bool) -> None:
    study = study_of({(0, 1): 0.1}, {(0, 1): 0.5}, {(0, 1): 0.9})
    assert stops(study, {(0, 1): value}, maximize=False) is stopped


def test_the_best_epoch_so_far_counts_and_not_the_last_one() -> None:
    study = study_of({(0, 1): 0.5, (0, 2): 0.5})
    assert not stops(study, {(0, 1): 0.6, (0, 2): 0.1})
    assert stops(study_of({(0, 1): 0.9, (0, 2): 0.1}), {(0, 1): 0.2, (0, 2): 0.5})
    assert not stops(study, {(0, 1): 0.4, (0, 2): 0.9}, maximize=False)


def test_what_others_reach_later_does_not_count_yet() -> None:
    study = study_of({(0, 1): 0.5, (0, 2): 0.9})
    assert not stops(study, {(0, 1): 0.6})
    assert stops(study, {(0, 1): 0.6, (0, 2): 0.6})


def test_a_fold_is_compared_with_the_same_fold_of_the_others() -> None:
    study = study_of({(0, 1): 0.9, (1, 1): 0.5})
    assert not stops(study, {(0, 1): 0.9, (1, 1): 0.6})
    assert stops(study, {(0, 1): 0.9, (1, 1): 0.4})


def test_others_that_did_not_come_as_far_are_no_peers() -> None:
    study = study_of({(0, 1): 0.9}, {(0, 1): 0.9, (0, 2): 0.9})
    assert stops(study, {(0, 1): 0.1, (0, 2): 0.1}, startup=1)
    assert not stops(study, {(0, 1): 0.1, (0, 2): 0.1}, startup=2)


@pytest.mark.parametrize(("startup", "stopped"), [(2, True), (3, True), (4, False)])
def test_nothing_is_stopped_before_enough_others_came_as_far(startup: int, stopped: bool) -> None:
    study = study_of({(0, 1): 0.9}, {(0, 1): 0.9}, {(0, 1): 0.9})
    assert stops(study, {(0, 1): 0.1}, startup=startup) is stopped


def test_nothing_is_stopped_when_stopping_is_off() -> None:
    assert not stops(study_of({(0, 1): 0.9}), {(0, 1): 0.1}, epochs="none")


def test_stopped_trials_are_peers_too() -> None:
    assert stops(study_of({(0, 1): 0.9}, state=TrialState.PRUNED), {(0, 1): 0.1})


def test_trials_that_failed_or_were_cut_short_are_no_peers() -> None:
    study = optuna.create_study(storage=RDBStorage("sqlite://"))
    study.add_trial(create_trial(state=TrialState.FAIL, intermediate_values={1: 0.9}))
    assert not stops(study, {(0, 1): 0.1})


def test_a_trial_is_not_its_own_peer() -> None:
    study = study_of({(0, 1): 0.5})
    trial = study.ask()
    trial.report(0.1, AXIS.step(0, 1))
    assert not stops(study, {(0, 1): 0.1}, startup=2), "only one other trial came as far"
    assert stops(study, {(0, 1): 0.1}, startup=1)


def test_the_median_is_that_of_all_trials_told_so_far_however_many() -> None:
    """Against the rule as it is written down: all curves, each time."""
    rng, study = random.Random(0), study_of()
    for maximize in (True, False):
        pruner = Pruner(study, StoppingConfig(startup_trials=1), AXIS, maximize=maximize)
        best = max if maximize else min
        for _ in range(20):
            steps = rng.sample(range(1, 7), rng.randint(1, 6))
            curve = {step: rng.choice([0.1, 0.2, 0.5, rng.random()]) for step in steps}
            study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.0, intermediate_values=curve))
            fold, epoch, value = rng.randint(0, 1), rng.randint(1, 3), rng.random()
            last = AXIS.step(fold, epoch)
            peers = [trial.intermediate_values for trial in study.trials if last in trial.intermediate_values]
            bests = [best(curve[step] for step in AXIS.steps(fold, epoch) if step in curve) for curve in peers]
            is_worse = bool(bests) and (value < median(bests) if maximize else value > median(bests))
            assert bool(pruner.reason_to_stop({last: value}, fold, epoch)) is is_worse
