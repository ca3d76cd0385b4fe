"""Several objectives: the front, what is stopped by it, and samplers that learn from both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo import show
from hpo.definition import StudyDefinition
from hpo.errors import HpoError, NoBestTrialError
from hpo.front import FrontRace, front_of
from hpo.history import HistorySampler
from hpo.ledger import LedgerStorage
from hpo.price import price_of
from hpo.reporting.summary import describe_front, describe_status
from hpo.selection import chosen_trial
from hpo.spending import FOLD_TIMES
from hpo.step_axis import StepAxis
from hpo.stopping.dominance import Racer
from hpo.study import ask, open_study, trial_folder
from hpo.study_config import StoppingConfig, StudyConfig
from hpo.tally import ESTIMATE, FOLD_SCORES, VIOLATED, tally_of
from training.config import JobConfig, Layer
from training.run_dir import Event, Record, RunDir

DIRECTIONS = ["maximize", "minimize"]


@pytest.fixture
def storage() -> Iterator[LedgerStorage]:
    opened = LedgerStorage("sqlite://")
    yield opened
    opened.engine.dispose()


@pytest.fixture
def study(storage: LedgerStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, directions=DIRECTIONS)


def complete(*folds: tuple[float, float], violation: float = 0.0) -> FrozenTrial:
    """A trial with the accuracy and the size of each fold."""
    attributes: dict[str, Any] = {FOLD_SCORES: [list(fold) for fold in folds]}
    attributes |= {VIOLATED: {"size.at_most": violation}} if violation > 0 else {}
    values = [float(value) for value in np.mean(folds, axis=0)]
    return create_trial(values=values, user_attrs=attributes, constraints={"size.at_most": violation})


def flat(accuracy: float, size: float, **options: float) -> FrozenTrial:
    """A trial of three folds."""
    return complete(*[(accuracy + shift, size) for shift in (-0.01, 0.0, 0.01)], **options)


def race_of(study: optuna.Study, **config: Any) -> FrontRace:
    return FrontRace(study, StoppingConfig(**{"epochs": "none", "folds": "dominance", **config}), 3)


def heard(race: FrontRace, *folds: tuple[float, float]) -> tuple[Racer, str]:
    """A trial of two epochs that ends these folds, and what is said after the last one."""
    racer, reason = race.new_runner(99, 99, 2), ""
    for fold, values in enumerate(folds):
        assert race.hear(racer, fold, 1, (0.0, 1e9)) == ""  # in the middle of a fold
        reason = race.hear(racer, fold, 2, values)
    return racer, reason


# The front


def test_the_front_is_that_of_optuna_however_trials_come(study: optuna.Study) -> None:
    random = np.random.default_rng(0)
    for number in range(60):
        accuracy, size = (float(value) for value in random.integers(0, 12, 2))
        study.add_trial(flat(accuracy, size, violation=1.0 if number % 5 == 0 else -1.0))
        if number % 7 == 0:
            study.add_trial(create_trial(state=TrialState.PRUNED))
        assert tally_of(study).front() == sorted(trial.number for trial in study.best_trials)
    assert [trial.values for trial in front_of(study)] == sorted((t.values for t in study.best_trials), reverse=True)


def test_without_a_feasible_trial_there_is_no_front(storage: LedgerStorage, tmp_path: Path) -> None:
    study = told_study(storage, tmp_path, flat(0.9, 10, violation=1.0))
    with pytest.raises(NoBestTrialError, match="has no completed trial yet that keeps its constraints; see hpo status"):
        front_of(study)


def test_a_study_without_constraints_blames_none_that_it_has_no_front(study: optuna.Study) -> None:
    with pytest.raises(NoBestTrialError, match="has no completed trial yet; see hpo status"):
        front_of(study)


# The race


def test_what_another_trial_dominates_is_stopped_after_a_fold_and_the_other_is_named(study: optuna.Study) -> None:
    study.add_trials([flat(0.9, 100), flat(0.7, 50)])
    _, reason = heard(race_of(study), (0.5, 12345))
    assert reason.startswith("fold 0: 0.5000, 12345 leave a chance of ")
    assert reason.endswith(" not to be dominated by trial 0")
    assert heard(race_of(study), (0.5, 49))[1] == ""


def test_a_trial_that_violates_a_constraint_stops_nobody(study: optuna.Study) -> None:
    study.add_trials([flat(0.9, 100, violation=1.0), flat(0.4, 300), flat(0.3, 400)])
    assert heard(race_of(study), (0.8, 200))[1] == ""
    study.add_trial(flat(0.9, 100))
    assert "dominated by trial 3" in heard(race_of(study), (0.8, 200))[1]


def test_a_race_hears_of_trials_that_are_told_while_it_runs(study: optuna.Study) -> None:
    race = race_of(study)
    assert heard(race, (0.5, 100))[1] == ""
    study.add_trials([flat(0.9, 100), flat(0.7, 50)])
    assert heard(race, (0.5, 100))[1] != ""


def test_the_last_fold_stops_nothing_and_none_never_does(study: optuna.Study) -> None:
    study.add_trials([flat(0.9, 100), flat(0.7, 50)])
    assert heard(race_of(study), (0.5, 100), (0.5, 100), (0.5, 100))[1] == ""
    assert heard(race_of(study, folds="none"), (0.5, 100))[1] == ""


def test_a_stopped_trial_is_told_as_the_one_that_dominates_it_and_the_difference_on_the_same_folds(
    study: optuna.Study,
) -> None:
    study.add_trials([complete((0.8, 100), (0.9, 100), (1.0, 100)), flat(0.7, 50)])
    racer, reason = heard(race_of(study), (0.3, 110))
    assert reason
    assert race_of(study).estimate(racer) == pytest.approx((0.9 - 0.5, 110.0))
    assert race_of(study).estimate(race_of(study).new_runner(5, 5, 2)) is None


def test_an_audited_trial_has_to_beat_the_means_of_the_one_that_dominates_it(study: optuna.Study) -> None:
    study.add_trials([complete((0.8, 100), (0.9, 100), (1.0, 100)), flat(0.7, 50)])
    race = race_of(study)
    assert race.to_beat(heard(race, (0.3, 110))[0]) == pytest.approx((0.9, 100.0))
    assert race.to_beat(heard(race, (0.3, 10))[0]) is None


# Samplers


def definition(root: Path, sampler: str, **changes: Any) -> StudyDefinition:
    values = {
        "study": f"demo_{sampler}",
        "objective": [{"metric": "accuracy", "direction": "maximize"}, {"metric": "loss", "direction": "minimize"}],
        "constraints": [{"metric": "loss", "at_most": 3.0}],
        "search_space": {
            "optimizer.lr": {"float": [0.001, 0.1], "step": 0.001},
            "optimizer.momentum": {"float": [0.0, 0.9], "step": 0.1},
        },
        "sampler": {"name": sampler, "startup_trials": 4},
        **changes,
    }
    job = JobConfig().with_values({"output.root": str(root)})
    config = StudyConfig.model_validate(values)
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer())


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "qmc", "grid"])
def test_every_sampler_goes_on_after_stopped_failed_and_infeasible_trials(
    storage: LedgerStorage, tmp_path: Path, sampler: str
) -> None:
    demo = definition(tmp_path, sampler)
    study = open_study(demo, storage)
    for number in range(14):
        trial, params = ask(study, demo)
        lr, momentum = params["optimizer.lr"], params["optimizer.momentum"]
        match number % 4:
            case 1:
                trial.set_constraint("loss.at_most", 2.0)
                trial.set_user_attr(ESTIMATE, [lr, 5.0])
                study.tell(trial, state=TrialState.PRUNED)
            case 2:
                study.tell(trial, state=TrialState.FAIL if number == 2 else TrialState.PRUNED)
            case _:
                trial.set_constraint("loss.at_most", -1.0 if number % 8 else 1.0)
                study.tell(trial, (lr, momentum))
    assert len({tuple(trial.params.values()) for trial in study.trials}) > 10


class Looking(optuna.samplers.RandomSampler):
    """Remembers the values of the completed trials that it is shown."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        shown = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self.seen = {each.number: each.values for each in shown}
        return {}


def test_a_stopped_trial_teaches_the_sampler_its_estimate_of_every_objective(study: optuna.Study) -> None:
    study.add_trial(flat(0.5, 10))
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs={ESTIMATE: [0.25, 12.0]}))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    looking = Looking()
    study.sampler = HistorySampler(looking, StepAxis(1, 1))
    study.ask().suggest_float("x", 0.0, 1.0)
    assert looking.seen == {0: [0.5, 10.0], 1: [0.25, 12.0]}
    assert study.trials[1].state is TrialState.PRUNED


# What is shown, and chosen


def told_study(storage: LedgerStorage, root: Path, *trials: FrozenTrial) -> optuna.Study:
    study = open_study(definition(root, "random"), storage)
    study.add_trials(trials)
    return study


def test_the_trials_of_the_front_are_described_by_each_objective_the_best_in_the_first_one_first(
    storage: LedgerStorage, tmp_path: Path
) -> None:
    study = told_study(storage, tmp_path, flat(0.5, 1.0), flat(0.9, 2.0), flat(0.4, 1.5))
    front = describe_front(study)
    assert [trial.number for trial in front] == [1, 0]
    assert [each.metric for each in front[0].judgements] == ["accuracy", "loss"]
    assert front[0].judgements[1].fold_scores == [2.0, 2.0, 2.0]
    assert front[0].interval.mean == pytest.approx(0.9)
    assert front[0].interval.low < 0.9 < front[0].interval.high
    assert describe_status(study).front == [0, 1]


def test_the_status_counts_the_epochs_of_all_folds_of_a_running_trial(storage: LedgerStorage, tmp_path: Path) -> None:
    study = told_study(storage, tmp_path, flat(0.5, 1.0))
    trial = study.ask()
    for fold in range(2):
        run_dir = RunDir(trial_folder(study, trial) / f"fold_{fold}")
        run_dir.path.mkdir(parents=True)
        run_dir.append(Record(event=Event.EVALUATE, step=1, epoch=1, time=0.0, values={"accuracy": 0.5, "loss": 1.0}))
        if fold == 0:  # it has ended
            run_dir.result.touch()
    [running] = describe_status(study).running
    assert (running["reports"], running["folds"]) == (2, {1: 1})


def test_the_status_says_how_many_trials_violate_a_constraint(
    storage: LedgerStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = told_study(storage, tmp_path, flat(0.5, 1.0), flat(0.9, 2.0, violation=1.0), flat(0.8, 3.0, violation=2.0))
    show.status([describe_status(study)], as_json=False, again=str)
    assert "infeasible  2 violate a constraint, by the folds that they ran\n" in capsys.readouterr().out


def test_one_trial_is_no_trials(storage: LedgerStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.status([describe_status(told_study(storage, tmp_path, flat(0.5, 1.0)))], as_json=False, again=str)
    assert "1 trial that no other dominates: 0\n" in capsys.readouterr().out


def test_what_a_fold_took_under_another_constraint_is_its_price_too(storage: LedgerStorage, tmp_path: Path) -> None:
    study = told_study(storage, tmp_path, flat(0.5, 1.0))
    study.ask().set_user_attr(FOLD_TIMES, [[3.0, 1]])
    other = definition(tmp_path, "random", study="other", constraints=[])
    measured = price_of(other, storage).measured
    assert measured is not None
    assert (measured.study, measured.fold_s) == ("demo_random", 3.0)


def test_a_trial_to_train_is_named_and_is_one_of_the_front(storage: LedgerStorage, tmp_path: Path) -> None:
    study = told_study(storage, tmp_path, flat(0.5, 1.0), flat(0.9, 2.0), flat(0.4, 1.5))
    with pytest.raises(HpoError, match="the folder of trial 0, .*, is gone: .*; no other is there"):
        chosen_trial(study, "best", None, 0)
    trial_folder(study, study.trials[0]).mkdir(parents=True)
    choice = chosen_trial(study, "best", None, 0)
    assert (choice.trial.number, choice.tags["hpo.select"]) == (0, "trial")
    assert choice.reason == "named by --trial, of a front of 2"
    with pytest.raises(HpoError, match="--trial 2 is not on the front in study 'demo_random'; take one of 1, 0"):
        chosen_trial(study, "best", None, 2)
    with pytest.raises(HpoError, match="has 2 objectives and no one best trial: name one of the front with --trial"):
        chosen_trial(study, "best", None, None)
    with pytest.raises(HpoError, match="--trial names the trial: leave --select and --top-k out"):
        chosen_trial(study, "ensemble", None, 1)
