"""Which trial is chosen to be trained: the best, the cheapest that is as good, or the folds of several."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import mean

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import HpoError, NoBestTrialError
from hpo.reporting.summary import describe_best
from hpo.selection import choose, chosen_trial, fold_cost
from hpo.study import FOLDER, IDENTITY, SPLIT_ID
from hpo.tally import FOLD_SCORES
from training.run_dir import Event, Record, RunDir

BEST = (0.70, 0.80, 0.90, 0.80, 0.80)
"""Mean 0.8. Its standard error, worked out in test_report.py, is 0.0474342: what reaches 0.7525658 is as good."""


def study_with(folder: Path, *trials: FrozenTrial, direction: str = "maximize", **config: object) -> optuna.Study:
    study = optuna.create_study(storage=RDBStorage("sqlite://"), study_name="demo", direction=direction)
    fixed = {"cross_validation.folds": 5, "task": "image_classification", **config}
    study.set_user_attr(IDENTITY, {"objective": {"metric": "accuracy", "direction": direction}, "config": fixed})
    study.set_user_attr(FOLDER, str(folder))
    study.add_trials(trials)
    for number, trial in enumerate(trials):
        for fold in range(len(trial.user_attrs.get(FOLD_SCORES, ()))):
            (folder / f"trial_{number:04d}" / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    return study


def complete(*scores: float, split: str = "same", violation: float = 0.0) -> FrozenTrial:
    attributes = {FOLD_SCORES: list(scores), SPLIT_ID: split}
    return create_trial(value=mean(scores), user_attrs=attributes, constraints={"memory": violation})


def took(folder: Path, trial: int, *seconds: float, world_size: int = 1) -> None:
    """Leave the records of folds that took so long."""
    for fold, lasted in enumerate(seconds):
        run_dir = RunDir(folder / f"trial_{trial:04d}" / f"fold_{fold}")
        run_dir.path.mkdir(parents=True, exist_ok=True)
        run_dir.append(record(Event.START, 1000.0, world_size=world_size))
        run_dir.append(record(Event.EVALUATE, 1000.0 + lasted / 2, accuracy=0.1))
        run_dir.append(record(Event.EVALUATE, 1000.0 + lasted, accuracy=0.5))


def record(event: Event, at: float, **values: float) -> Record:
    return Record(event=event, step=1, epoch=1, time=at, values=values)


# One standard error


@pytest.mark.parametrize(("score", "number"), [(0.753, 1), (0.752, 0)])
def test_the_cheapest_within_one_standard_error_is_chosen_and_none_below_it(
    tmp_path: Path, score: float, number: int
) -> None:
    study = study_with(tmp_path, complete(*BEST), complete(*[score] * 5))
    took(tmp_path, 0, 9.0, 11.0)
    took(tmp_path, 1, 4.0, 6.0)
    choice = choose(study, "one-standard-error")
    assert (choice.trial.number, choice.best.number) == (number, 0)
    assert (choice.cost_s, choice.best_cost_s) == ((5.0, 10.0) if number else (10.0, 10.0))
    assert "whose accuracy is at least 0.7526, one standard error (0.0474) from the best" in choice.reason


def test_of_a_metric_to_minimize_what_is_higher_by_less_than_that_is_as_good(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(*BEST), complete(*[0.84] * 5), complete(*[0.85] * 5), direction="minimize")
    for trial, seconds in enumerate((10.0, 5.0, 1.0)):
        took(tmp_path, trial, seconds)
    choice = choose(study, "one-standard-error")
    assert choice.trial.number == 1
    assert "the cheapest of 2 trials whose accuracy is at most 0.8474" in choice.reason


def test_of_two_that_cost_the_same_the_better_one_is_chosen(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(*[0.77] * 5), complete(*[0.78] * 5), complete(*BEST))
    for trial, seconds in enumerate((5.0, 5.0, 8.0)):
        took(tmp_path, trial, seconds)
    assert choose(study, "one-standard-error").trial.number == 1


def test_a_fold_on_two_devices_costs_twice_its_seconds(tmp_path: Path) -> None:
    took(tmp_path, 0, 3.0, 5.0, world_size=2)
    assert fold_cost(tmp_path / "trial_0000") == 8.0


def test_the_time_that_a_fold_lay_parked_costs_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "trial_0000" / "fold_0")
    run_dir.path.mkdir(parents=True)
    for event, time in (("start", 0.0), ("evaluate", 100.0), ("start", 50_000.0), ("evaluate", 50_100.0)):
        values = {"world_size": 2.0} if event == "start" else {"accuracy": 0.5}
        run_dir.append(Record(event=Event(event), step=1, epoch=1, time=time, values=values))
    assert fold_cost(tmp_path / "trial_0000") == 400.0


def test_a_trial_whose_records_are_gone_or_damaged_is_not_the_cheapest(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(*BEST), complete(*[0.79] * 5), complete(*[0.78] * 5))
    took(tmp_path, 0, 10.0)
    took(tmp_path, 2, 1.0)
    (tmp_path / "trial_0002" / "fold_0" / "metrics.jsonl").write_text("half a rec\n")
    choice = choose(study, "one-standard-error")
    assert choice.trial.number == 0
    assert "what 2 of them cost is not known" in choice.reason


def test_without_any_record_or_a_second_fold_the_best_is_chosen(tmp_path: Path) -> None:
    assert choose(study_with(tmp_path, complete(0.5), complete(0.6)), "one-standard-error").trial.number == 1


@pytest.mark.parametrize("select", ["best", "one-standard-error", "ensemble"])
def test_only_completed_trials_that_violate_nothing_are_chosen(tmp_path: Path, select: str) -> None:
    pruned = create_trial(state=TrialState.PRUNED, value=0.99)
    study = study_with(tmp_path, pruned, complete(0.9, 0.9, violation=1.0), complete(0.5, 0.7))
    took(tmp_path, 1, 0.1)
    took(tmp_path, 2, 1.0)
    choice = choose(study, select)  # type: ignore[arg-type]
    assert choice.trial == choice.best == describe_best(study)
    assert choice.trial.number == 2
    with pytest.raises(NoBestTrialError):
        choose(study_with(tmp_path, pruned), select)  # type: ignore[arg-type]


# Ensembles


def members(study: optuna.Study, top_k: int | None = None) -> list[str]:
    return [str(member) for member in choose(study, "ensemble", top_k=top_k).members]


def test_members_are_the_folds_of_the_best_trial_then_of_the_next(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(0.5, 0.7), complete(0.8, 0.8), complete(0.7, 0.6))
    assert members(study) == ["trial 1 fold 0", "trial 1 fold 1"]
    assert members(study, 3) == ["trial 1 fold 0", "trial 1 fold 1", "trial 2 fold 0"]
    with pytest.raises(HpoError, match=r"--top-k 7: the completed trials of study 'demo' have 6 folds"):
        members(study, 7)


def test_members_were_scored_on_the_samples_of_the_best_trial(tmp_path: Path) -> None:
    other = complete(0.7, 0.7, split="another")
    study = study_with(tmp_path, complete(0.8, 0.8), other, complete(0.5, 0.5))
    assert members(study, 3) == ["trial 0 fold 0", "trial 0 fold 1", "trial 2 fold 0"]


@pytest.mark.parametrize(
    ("fixed", "what"),
    [
        ({"task": "embedding"}, "models of task embedding"),
        ({"task": "language_modeling"}, "models of task language_modeling"),
        ({"task": "mine:Task"}, "models of task mine:Task"),
        ({"lora.merge": False}, "adapters without their base"),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_what_to_do(
    tmp_path: Path, fixed: dict[str, object], what: str
) -> None:
    study = study_with(tmp_path, complete(0.5, 0.7), **fixed)
    with pytest.raises(HpoError, match=f"{what} cannot be averaged so: take --select best"):
        choose(study, "ensemble")
    assert choose(study).trial.number == 0


# Folders that a person has removed


def test_a_trial_whose_folder_is_gone_is_not_chosen_and_another_one_is_named(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(0.5, 0.5), complete(0.6, 0.6), complete(0.8, 0.8))
    assert chosen_trial(study, "best", None, None).trial.number == 2
    shutil.rmtree(tmp_path / "trial_0002")
    gone = f"the folder of trial 2, with the configuration to train, is gone: {tmp_path}/trial_0002"
    for number in (None, 2):
        with pytest.raises(HpoError, match=f"{gone}; --trial 1 takes the best one that is there"):
            chosen_trial(study, "best", None, number)
    assert chosen_trial(study, "best", None, 1).trial.number == 1
    shutil.rmtree(tmp_path / "trial_0001")
    shutil.rmtree(tmp_path / "trial_0000")
    with pytest.raises(HpoError, match=f"{gone}; no other is there: is this the machine"):
        chosen_trial(study, "one-standard-error", None, None)


def test_the_cheapest_is_one_whose_folder_is_there(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(*BEST), complete(*[0.79] * 5))
    took(tmp_path, 1, 9.0)
    shutil.rmtree(tmp_path / "trial_0000")
    choice = chosen_trial(study, "one-standard-error", None, None)
    assert choice.trial.number == 1
    assert "what 1 of them cost is not known, as their records are gone" in choice.reason


def test_members_whose_folders_are_gone_are_left_out_with_a_word(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(0.5, 0.7), complete(0.8, 0.8), complete(0.7, 0.6))
    shutil.rmtree(tmp_path / "trial_0001")
    shutil.rmtree(tmp_path / "trial_0002" / "fold_0")
    choice = chosen_trial(study, "ensemble", 2, None)
    assert [str(member) for member in choice.members] == ["trial 2 fold 1", "trial 0 fold 0"]
    assert (choice.trial.number, choice.best.number) == (2, 1)
    assert choice.reason.endswith(f"; left out, as it is gone: {tmp_path}/trial_0001 and 1 more")
    told = f"have 3 folds on the data of the best one (gone: {tmp_path}/trial_0001 and 1 more); take --select best, or"
    with pytest.raises(HpoError, match=re.escape(told)):
        members(study, 4)


def test_top_k_without_an_ensemble_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HpoError, match="add --select ensemble"):
        choose(study_with(tmp_path, complete(0.5, 0.7)), top_k=2)


def test_mlflow_is_told_of_the_choice(tmp_path: Path) -> None:
    trials = [
        create_trial(value=value, user_attrs={FOLD_SCORES: [value] * 2, SPLIT_ID: "same"}) for value in (0.5, 0.6)
    ]
    choice = choose(study_with(tmp_path, *trials), "ensemble", top_k=3)
    assert choice.tags == {
        "hpo.select": "ensemble",
        "hpo.selected_trial": "1",
        "hpo.members": "trial 1 fold 0, trial 1 fold 1, trial 0 fold 0",
    }
    assert choice.params == {}


def test_a_named_trial_that_violates_a_constraint_is_refused_for_that(tmp_path: Path) -> None:
    study = study_with(tmp_path, complete(0.9, violation=1.0), complete(0.5))
    with pytest.raises(HpoError, match="--trial 0 is no completed trial in study 'demo'; take one of 1"):
        chosen_trial(study, "best", None, 0)
    study.set_user_attr(IDENTITY, {**study.user_attrs[IDENTITY], "constraints": [{"metric": "loss", "at_most": 1.0}]})
    with pytest.raises(HpoError, match="--trial 0 is no completed trial that keeps its constraints in study 'demo'"):
        chosen_trial(study, "best", None, 0)
