"""Trials that were interrupted: told, and asked for again with what they had."""

from __future__ import annotations

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo.study import ask, finished_trials, inherit_folds, interrupt, open_study, trial_folder
from hpo.tally import CONTINUES, INTERRUPTED
from tests.unit.hpo.study.definitions import CONDITIONAL, define, evaluate


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


def test_a_queued_trial_cut_short_while_it_is_sampled_keeps_its_hyperparameters(storage: RDBStorage) -> None:
    study = open_study(define(), storage)
    study.enqueue_trial({"optimizer.lr": 0.01})
    study.ask()
    interrupt(study, 0)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    assert study.trials[1].system_attrs["fixed_params"] == {"optimizer.lr": 0.01}
