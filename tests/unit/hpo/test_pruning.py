"""When a losing trial is stopped, and what it is told as: a (fold, epoch) axis that is the same in every trial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.definition import StudyDefinition
from hpo.pruning import Pruner, is_audited
from hpo.step_axis import StepAxis
from hpo.stopping.field import Runner
from hpo.stopping.halving import Halving, fold_halving
from hpo.study_config import StoppingConfig, StudyConfig
from hpo.tally import FOLD_SCORES, PAUSED
from training.config import JobConfig, Layer

AXIS = StepAxis(3, num_folds=2)


def told(study: optuna.Study, *folds: list[float], state: TrialState = TrialState.COMPLETE) -> None:
    """A trial with these curves of its folds is told; a fold of three epochs has ended."""
    values = {AXIS.step(fold, epoch): value for fold, curve in enumerate(folds) for epoch, value in enumerate(curve, 1)}
    scores = [curve[-1] if len(curve) == 3 else None for curve in (*folds, *[[]] * (2 - len(folds)))]
    value = None if state is TrialState.FAIL else 0.0
    trial = create_trial(state=state, value=value, intermediate_values=values, user_attrs={FOLD_SCORES: scores})
    study.add_trial(trial)


def heard(pruner: Pruner, *folds: list[float]) -> tuple[Runner, str]:
    """A trial that reports these curves, and what the pruner says after the last value."""
    runner, reason = pruner.new_runner(99, 99, 3), ""
    for fold, curve in enumerate(folds):
        for epoch, value in enumerate(curve, start=1):
            reason = pruner.hear(runner, fold, epoch, value)
    return runner, reason


def pruner_of(study: optuna.Study, *, maximize: bool = True, **config: Any) -> Pruner:
    return Pruner(study, StoppingConfig(**config), AXIS, maximize=maximize)


@pytest.fixture
def study() -> Iterator[optuna.Study]:
    storage = RDBStorage("sqlite://")
    yield optuna.create_study(storage=storage)
    storage.engine.dispose()


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


def test_the_verdict_comes_after_every_fold_and_is_no_value_of_any() -> None:
    assert AXIS.verdict == AXIS.step(1, 3) + 1
    curves = AXIS.curves({AXIS.step(1, 2): 0.5, AXIS.verdict: 0.9})
    assert curves[1, 1] == 0.5 and np.isnan(curves).sum() == 5


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


# The pruner


FORGIVING: dict[str, Any] = {"epochs": "none", "folds": "forgiving"}
MEDIAN: dict[str, Any] = {"epochs": "median", "folds": "none", "startup_trials": 1}


@pytest.mark.parametrize(
    ("maximize", "value", "stopped"), [(True, 0.4, True), (True, 0.6, False), (False, 0.4, False), (False, 0.6, True)]
)
def test_the_same_rules_serve_both_directions(study: optuna.Study, maximize: bool, value: float, stopped: bool) -> None:
    told(study, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    _, reason = heard(pruner_of(study, maximize=maximize, **MEDIAN), [value])
    assert bool(reason) is stopped
    _, reason = heard(pruner_of(study, maximize=maximize, **FORGIVING), [0.5, 0.5, value])
    assert bool(reason) is stopped


def test_the_rule_of_the_epochs_is_not_asked_at_the_end_of_a_fold_and_that_of_the_folds_only_then(
    study: optuna.Study,
) -> None:
    told(study, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert heard(pruner_of(study, **MEDIAN), [0.6, 0.6, 0.1])[1] == ""
    assert heard(pruner_of(study, **FORGIVING), [0.1, 0.1])[1] == ""
    assert heard(pruner_of(study, **FORGIVING), [0.6, 0.6, 0.1])[1].startswith("fold 0, epoch 3: 0.1 its mean is below")


def test_a_trial_whose_last_fold_ended_is_not_stopped_any_more(study: optuna.Study) -> None:
    told(study, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert heard(pruner_of(study, **FORGIVING), [0.1, 0.1, 0.1], [0.1, 0.1, 0.1])[1] == ""


def test_stopped_trials_are_compared_with_and_those_that_failed_are_not(study: optuna.Study) -> None:
    told(study, [0.9], state=TrialState.FAIL)
    assert heard(pruner_of(study, **MEDIAN), [0.1])[1] == ""
    told(study, [0.9], state=TrialState.PRUNED)
    assert heard(pruner_of(study, **MEDIAN), [0.1])[1] == "fold 0, epoch 1: 0.1 worse than the median of 1 trials"


def test_trials_told_meanwhile_are_seen(study: optuna.Study) -> None:
    pruner = pruner_of(study, **MEDIAN)
    assert heard(pruner, [0.1])[1] == ""
    told(study, [0.9])
    assert heard(pruner, [0.1])[1]


# What a stopped trial is told


def test_an_easy_fold_or_an_early_epoch_counts_neither_for_nor_against_a_stopped_trial(study: optuna.Study) -> None:
    told(study, [0.1, 0.2, 0.4], [0.5, 0.6, 0.8])  # its second fold is easier, and it rises: mean 0.6
    pruner = pruner_of(study, **FORGIVING)
    for behind in ([[0.05]], [[0.05, 0.15, 0.35]], [[0.05, 0.15, 0.35], [0.45]], [[], [0.45, 0.55]]):
        runner, _ = heard(pruner, *behind)
        assert pruner.estimate(runner) == pytest.approx(0.55), "0.05 behind wherever it was seen"


def test_an_estimate_is_a_plain_mean_while_there_is_none_to_compare_with(study: optuna.Study) -> None:
    pruner = pruner_of(study, maximize=False)
    assert pruner.estimate(heard(pruner, [0.5, 0.25, 0.5], [0.75])[0]) == pytest.approx(0.625)
    assert pruner.estimate(pruner.new_runner(0, 0, 3)) is None


def test_a_longer_training_than_the_incumbents_is_compared_with_its_end(study: optuna.Study) -> None:
    study.add_trial(
        create_trial(value=0.0, intermediate_values={1: 0.4, 4: 0.6}, user_attrs={FOLD_SCORES: [0.4, 0.6]})
    )  # one epoch a fold
    pruner = pruner_of(study)
    assert pruner.estimate(heard(pruner, [0.1, 0.5])[0]) == pytest.approx(0.6)


# The audit


def test_the_audit_takes_about_its_share_and_always_the_same_trials() -> None:
    audited = [number for number in range(2000) if is_audited(number, 0.05, seed=3)]
    assert 60 < len(audited) < 140
    assert audited == [number for number in range(2000) if is_audited(number, 0.05, seed=3)]
    assert not any(is_audited(number, 0.0, seed=3) for number in range(100))
    assert all(is_audited(number, 1.0, seed=3) for number in range(100))


# Promotions

HALVING = Halving(rungs=fold_halving(2, 3, 0.5).rungs, places=(0.5, 0.25))


def paused(study: optuna.Study, *folds: list[float], **attributes: Any) -> None:
    told(study, *folds, state=TrialState.PRUNED)
    trial = study._storage.get_all_trials(study._study_id)[-1]
    copied = create_trial(
        state=TrialState.PRUNED,
        value=0.0,
        intermediate_values=trial.intermediate_values,
        user_attrs={**trial.user_attrs, PAUSED: True, **attributes},
    )
    study.add_trial(copied)


def halving_pruner(study: optuna.Study, *, audit: float = 0.0, target: float | None = None) -> Pruner:
    return Pruner(study, StoppingConfig(audit=audit), AXIS, maximize=True, halving=HALVING, target=target)


def test_a_new_trial_is_paused_in_the_middle_of_its_first_fold_or_without_halving_never(study: optuna.Study) -> None:
    assert halving_pruner(study).until(9) == (5, 0)
    assert pruner_of(study, folds="none").until(9) == (9, 9)
    assert pruner_of(study, folds="none").promotions(is_end=True) == []


def test_the_best_of_the_paused_trials_goes_on_and_one_that_was_stopped_does_not(study: optuna.Study) -> None:
    """What another rule or a person stopped would be stopped again, and again."""
    told(study, [0.5, 0.9], state=TrialState.PRUNED)
    paused(study, [0.5, 0.6])
    paused(study, [0.5, 0.7])
    pruner = halving_pruner(study)
    assert pruner.promotions(is_end=False) == [], "others are to come"
    [found] = pruner.promotions(is_end=True)
    assert (found.until, found.num_jobs, found.to_beat) == ((3, 0), 1, None)
    assert study.trials[found.number].intermediate_values[AXIS.step(0, 2)] == 0.7


def test_trials_left_behind_run_on_for_the_audit_when_nothing_else_does(study: optuna.Study) -> None:
    told(study, [0.5, 0.9, 0.9], [0.5, 0.9, 0.9])
    paused(study, [0.5, 0.6])
    assert halving_pruner(study).promotions(is_end=True) == []
    audited = halving_pruner(study, audit=1.0)
    assert audited.promotions(is_end=False) == []
    [found] = audited.promotions(is_end=True)
    assert (found.until, found.num_jobs, found.to_beat) == ((3, 3), 2, 0.9)


def test_a_paused_trial_that_seems_to_reach_the_target_goes_on_to_its_end_at_once(study: optuna.Study) -> None:
    told(study, [0.5, 0.6, 0.8], [0.5, 0.6, 0.8])
    paused(study, [0.5, 0.62])
    paused(study, [0.5, 0.65])
    assert halving_pruner(study, target=0.9).promotions(is_end=False) == []
    [found] = halving_pruner(study, target=0.81).promotions(is_end=False)
    assert found.until == (3, 3), "0.02 and 0.05 ahead of what came to 0.8"
    assert study.trials[found.number].intermediate_values[AXIS.step(0, 2)] == 0.65


def test_a_trial_that_goes_on_is_judged_by_all_that_it_has(study: optuna.Study) -> None:
    told(study, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    pruner = pruner_of(study, **FORGIVING)
    runner = pruner.new_runner(9, 3, 3)
    for epoch, value in enumerate((0.6, 0.6, 0.1), start=1):
        pruner.note(runner, 0, epoch, value)
    pruner.note(runner, 1, 1, 0.9)
    assert pruner.judge_taken_over(runner).startswith("fold 0, epoch 3: 0.1 ")
    assert pruner.judge_taken_over(pruner.new_runner(10, 4, 3)) == ""
