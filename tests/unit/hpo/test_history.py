"""What samplers learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.history import NUM_GOOD, HistorySampler, best_and_newest, with_common_constraints
from hpo.ledger import LedgerStorage
from hpo.step_axis import StepAxis
from hpo.study import ask, open_study
from hpo.study_config import SamplerConfig
from hpo.tally import CONTINUES, REVIVES
from tests.many_trials import add_finished_trials, define_six

AXIS = StepAxis(2, num_folds=2)


@pytest.fixture
def memory() -> Iterator[LedgerStorage]:
    opened = LedgerStorage("sqlite://")
    yield opened
    opened.engine.dispose()


def trials(*told: float | TrialState) -> list[FrozenTrial]:
    """Trials with these values or states."""
    study = optuna.create_study()
    for each in told:
        is_state = isinstance(each, TrialState)
        study.add_trial(create_trial(state=each) if is_state else create_trial(value=each))
    return study.trials


def numbers(chosen: Sequence[FrozenTrial]) -> list[int]:
    return [trial.number for trial in chosen]


@pytest.mark.parametrize("direction", list(StudyDirection)[1:])
def test_the_best_trials_are_kept_however_old_and_the_newest_of_the_others(direction: StudyDirection) -> None:
    sign = 1.0 if direction is StudyDirection.MAXIMIZE else -1.0
    values = [sign * (100.0 if number < NUM_GOOD else number / 1000) for number in range(90)]
    chosen = best_and_newest(trials(*values), 40, direction)
    assert numbers(chosen) == [*range(NUM_GOOD), *range(75, 90)]


def test_trials_that_are_not_told_yet_are_kept_and_failed_ones_left_out() -> None:
    told = trials(*[0.5] * 60, TrialState.WAITING, TrialState.FAIL, TrialState.RUNNING)
    chosen = best_and_newest(told, 30, StudyDirection.MAXIMIZE)
    assert numbers(chosen)[-2:] == [60, 62] and len(chosen) == 32


def test_a_trial_that_violates_a_constraint_is_not_among_the_best() -> None:
    study = optuna.create_study()
    for number in range(60):
        trial = study.ask()
        trial.set_constraint("memory", 1.0 if number == 0 else -1.0)
        study.tell(trial, -100.0 if number == 0 else float(number))
    assert numbers(best_and_newest(study.trials, 30, StudyDirection.MINIMIZE))[0] == 1


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"]])
def test_gp_goes_on_where_only_some_trials_know_a_constraint(memory: LedgerStorage, directions: list[str]) -> None:
    study = optuna.create_study(storage=memory, directions=directions)
    for number in range(6):
        study.sampler = HistorySampler(GPSampler(seed=0, n_startup_trials=2), AXIS)
        trial = study.ask()
        lr = trial.suggest_float("lr", 0.0, 1.0)
        if number % 2:  # predicted on another machine
            trial.set_constraint("memory", -0.5)
        trial.set_constraint("size", -lr)
        study.tell(trial, [(lr - 0.3) ** 2, lr][: len(directions)])
    assert [len(trial.constraints) for trial in study.trials] == [1, 2] * 3
    assert {tuple(trial.constraints) for trial in with_common_constraints(study.trials)} == {("size",)}


def sampled_after(storage: LedgerStorage, root: Path, count: int, **sampler: Any) -> dict[str, Any]:
    """What the next trial of a study of `count` trials gets."""
    definition = define_six(root, study=f"{count}-{sampler}".translate({ord(each): "_" for each in "{}': ,"}))
    chosen = SamplerConfig(name="tpe", seed=3, **sampler)
    object.__setattr__(definition, "config", definition.config.model_copy(update={"sampler": chosen}))
    study = open_study(definition, storage)
    add_finished_trials(study, definition, count)
    return ask(study, definition)[1]


def test_a_study_within_the_bound_is_sampled_as_without_one_and_a_longer_one_is_not(
    memory: LedgerStorage, tmp_path: Path
) -> None:
    assert sampled_after(memory, tmp_path, 90, max_history=100) == sampled_after(memory, tmp_path, 90)
    assert sampled_after(memory, tmp_path, 300, max_history=100) != sampled_after(memory, tmp_path, 300)


def test_a_bound_is_for_tpe_and_leaves_room_to_model() -> None:
    with pytest.raises(ValueError, match="max_history is for tpe; random has none, leave it out"):
        SamplerConfig(name="random", max_history=100)
    with pytest.raises(ValueError, match="max_history: 100 is below startup_trials: tpe would never model"):
        SamplerConfig(max_history=100, startup_trials=101)


def seen_by_sampler(study: optuna.Study) -> list[tuple[int, str, float | None]]:
    """Number, state and value of the finished trials."""
    seen: list[tuple[int, str, float | None]] = []

    class Looks(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
            trials = study._get_trials(deepcopy=False)
            seen.extend((each.number, each.state.name, each.value) for each in trials if each.state.is_finished())
            return {}

    study.sampler = HistorySampler(Looks(), AXIS)
    study.ask().suggest_float("x", 0.0, 1.0)
    return seen


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_was_stopped_before_any_trial_was_complete_is_estimated_beside_the_best_one_of_now(sign: float) -> None:
    """Half of its first fold scored 0.5, where what came to 0.9 in the end had 0.6."""
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")

    def told(state: TrialState, value: float, *values: float) -> None:
        curve = {step: sign * each for step, each in enumerate(values, start=1)}
        study.add_trial(create_trial(state=state, value=sign * value, intermediate_values=curve))

    told(TrialState.PRUNED, 0.5, 0.5)
    assert seen_by_sampler(study) == [(0, "COMPLETE", sign * 0.5)]
    told(TrialState.COMPLETE, 0.8, 0.6, 0.8, 0.6, 0.8)
    told(TrialState.COMPLETE, 0.9, 0.6, 0.9, 0.7, 0.9)
    assert seen_by_sampler(study)[0] == (0, "COMPLETE", pytest.approx(sign * 0.8))
    told(TrialState.COMPLETE, 0.95, 0.4, 0.9, 0.8, 1.0)
    assert seen_by_sampler(study)[0] == (0, "COMPLETE", pytest.approx(sign * 1.05)), "beside another best one"


def test_a_stopped_trial_counts_as_one_that_scored_its_estimate_unless_it_was_taken_up_again() -> None:
    study = optuna.create_study(direction="maximize")
    for value, state, attributes in (
        (0.5, TrialState.COMPLETE, {}),
        (0.4, TrialState.PRUNED, {}),
        (None, TrialState.PRUNED, {}),
        (0.6, TrialState.PRUNED, {}),
        (0.7, TrialState.COMPLETE, {CONTINUES: 3}),
    ):
        study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
    seen = [(0, "COMPLETE", 0.5), (1, "COMPLETE", 0.4), (2, "PRUNED", None), (3, "COMPLETE", 0.7)]
    assert seen_by_sampler(study) == seen, "it was sampled as the third"
    assert [trial.state.name for trial in study.trials[:3]] == ["COMPLETE", "PRUNED", "PRUNED"], "only to the sampler"


@pytest.mark.parametrize(
    ("sampler", "attribute"),
    [
        (optuna.samplers.NSGAIISampler(population_size=4, seed=0), "NSGAIISampler:generation"),
        (optuna.samplers.CmaEsSampler(n_startup_trials=1, popsize=4, seed=0), "cma:generation"),
    ],
)
def test_generations_hold_the_trials_that_others_went_on_with(sampler: BaseSampler, attribute: str) -> None:
    """Each is paused, and one that goes on with it, whose values are not sampled, comes to its end."""
    study = optuna.create_study(direction="maximize")
    for number in range(0, 40, 2):
        study.sampler = HistorySampler(sampler, AXIS)
        trial = study.ask()
        params = {name: trial.suggest_float(name, 0.0, 1.0) for name in ("x", "y")}
        trial.report(params["x"], 1)
        study.tell(trial, state=TrialState.PRUNED)
        study.enqueue_trial(params, user_attrs={CONTINUES: number, REVIVES: number})
        again = study.ask()
        study.tell(again, sum(again.suggest_float(name, 0.0, 1.0) for name in params))
    generations = [each.system_attrs[attribute] for each in study.trials if attribute in each.system_attrs]
    assert max(generations) >= 3
