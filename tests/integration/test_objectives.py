"""Searches with several objectives and with constraints: real jobs, from the sweep to the trained model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.integration.conftest import CHECKOUT, CONFIGURED, enter, run_hpo
from training.run_dir import Event, RunDir

ONE_AT_A_TIME = "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n"
SIZED = """\
  optimizer: {lr: 0.01}
cross_validation: {folds: 3}
search_space:
  model.hidden_size: {choice: [8, 16, 32, 64]}
"""
SEVERAL = "objective: [{metric: accuracy, direction: maximize}, {metric: parameters, direction: minimize}]\n"
SIZES = {size: size * 64 + size + size * 10 + 10 for size in (8, 16, 32, 64)}
"""Numbers in the model, by its hidden size: two layers with their biases, from 64 pixels to 10 digits."""


def write(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workplace with one study."""
    (folder / "studies").mkdir()
    study = CONFIGURED.format(checkout=CHECKOUT) + SIZED + text + ONE_AT_A_TIME
    (folder / "studies" / "digits.yaml").write_text(study)
    enter(folder, monkeypatch)


def trials() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="digits", storage="sqlite:///runs/studies.db").trials


def dominates(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return ours[0] >= theirs[0] and ours[1] <= theirs[1] and list(ours) != list(theirs)


def test_a_search_for_accuracy_and_size_gives_its_front_and_trains_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = "sampler: {name: grid, seed: 1}\nstopping: {audit: 0.0}\nbudget: {trials: 4}\n"
    write(tmp_path, SEVERAL + "constraints: [{metric: parameters, at_most: 3000}]\n" + grid, monkeypatch)
    told = run_hpo("sweep", "--study", "digits")
    for trial in trials():
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        scores = [score for score in trial.user_attrs["hpo:fold_scores"] if score is not None]
        assert {score[1] for score in scores} == {float(SIZES[trial.params["model.hidden_size"]])}
        if trial.state is TrialState.COMPLETE:
            assert trial.values == pytest.approx([sum(column) / 3 for column in zip(*scores, strict=True)])
    front = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)["front"]
    complete = {trial.number: trial.values for trial in trials() if trial.state is TrialState.COMPLETE}
    feasible = {number: values for number, values in complete.items() if values[1] <= 3000}
    best = {number for number, own in feasible.items() if not any(dominates(each, own) for each in feasible.values())}
    assert {trial["number"] for trial in front} == best
    assert f"front of study digits: {len(front)} trial" in told.stdout
    too_large = next(trial for trial in trials() if trial.params["model.hidden_size"] == 64)
    assert too_large.constraints == {"parameters.at_most": SIZES[64] - 3000.0}

    chosen = front[-1]["number"]
    assert f"take one of {', '.join(str(trial['number']) for trial in front)}" in refused("--trial", "99")
    assert "name one of the front with --trial" in refused()
    trained = json.loads(
        run_hpo("train-best", "--study", "digits", "--trial", str(chosen), "--verify", "--json").stdout
    )
    assert trained["trial"] == chosen
    assert trained["metrics"]["parameters"] == feasible[chosen][1]
    [status] = json.loads(run_hpo("status", "--study", "digits", "--json").stdout)
    assert (status["front"], status["best_trial"]) == (sorted(best), None)


def refused(*arguments: str) -> str:
    return run_hpo("train-best", "--study", "digits", *arguments, status=2).stderr


@pytest.mark.nightly
def test_what_another_trial_dominates_is_stopped_between_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = "  optimizer.lr: {choice: [0.05, 1e-6]}\nsampler: {name: grid, seed: 0}\nbudget: {trials: 8}\n"
    write(tmp_path, space + SEVERAL + "stopping: {audit: 0.0}\n", monkeypatch)
    err = run_hpo("sweep", "--study", "digits").stderr
    stopped = [trial for trial in trials() if trial.state is TrialState.PRUNED]
    assert stopped, err
    for trial in stopped:
        assert trial.params["optimizer.lr"] == 1e-6
        assert "not to be dominated by trial" in trial.user_attrs["hpo:reason"]
        assert None in trial.user_attrs["hpo:fold_scores"]
        assert trial.user_attrs["hpo:estimate"][1] == SIZES[trial.params["model.hidden_size"]]
        assert not (tmp_path / f"runs/digits/trial_{trial.number:04d}/fold_2").exists()


@pytest.mark.nightly
def test_a_dominated_trial_runs_on_for_the_audit_and_the_report_counts_those_that_were_stopped_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "  optimizer.lr: {choice: [0.05, 1e-6]}\nsampler: {name: grid, seed: 0}\nbudget: {trials: 8}\n"
    write(tmp_path, space + SEVERAL + "stopping: {audit: 1.0}\n", monkeypatch)
    err = run_hpo("sweep", "--study", "digits").stderr
    assert {trial.state for trial in trials()} == {TrialState.COMPLETE}
    audited = {trial.number: trial.user_attrs["hpo:audit"] for trial in trials() if "hpo:audit" in trial.user_attrs}
    assert audited, err
    for audit in audited.values():
        assert "not to be dominated by trial" in audit["reason"]
        assert audit["to_beat"][1] in SIZES.values()
    assert "runs on for the audit" in err
    beaten = [(trials()[number].values, audit["to_beat"]) for number, audit in audited.items()]
    num_false = sum(ours[0] > theirs[0] or ours[1] < theirs[1] for ours, theirs in beaten)
    found = json.loads(run_hpo("report", "--study", "digits", "--json").stdout)["cost"]["false_stops"]
    assert (found["num_audited"], found["num_false"]) == (len(audited), num_false)


@pytest.mark.nightly
def test_the_best_trial_of_one_objective_keeps_its_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "objective: {metric: accuracy, direction: maximize}\nsampler: {name: grid}\nbudget: {trials: 4}\n"
    limits = "constraints: [{metric: parameters, at_most: 1300}, {metric: inference_ms, at_most: 1000}]\n"
    write(tmp_path, one + limits + "stopping: {epochs: none, folds: none}\n", monkeypatch)
    err = run_hpo("sweep", "--study", "digits").stderr
    best: dict[str, Any] = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)
    allowed = [trial for trial in trials() if trial.params["model.hidden_size"] <= 16]
    assert best["number"] in {trial.number for trial in allowed}
    assert best["interval"]["mean"] == max(trial.value for trial in allowed)
    assert f"violates parameters.at_most by {SIZES[64] - 1300}" in err
    for record in RunDir(Path(best["folder"]) / "fold_0").records():
        if record.event is Event.EVALUATE:
            assert 0 < record.values["inference_ms"] < 1000


def test_a_deadline_does_not_hide_that_no_trial_keeps_a_constraint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = "sampler: {name: grid}\nbudget: {trials: 2, deadline: 1000s}\n"
    write(tmp_path, SEVERAL + "constraints: [{metric: parameters, at_most: 1}]\n" + budget, monkeypatch)
    done = run_hpo("sweep", "--study", "digits", status=1)
    assert "study 'digits' has no completed trial yet that keeps its constraints" in done.stderr
    assert "no trial is complete yet" not in done.stdout


def test_the_example_of_accuracy_against_size_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)
    path, short = str(CHECKOUT / "studies" / "digits_pareto.yaml"), ("--set", "data.max_samples=200")
    run_hpo("sweep", "--study", path, "--trials", "3", "--folds", "2", "--set", "training.epochs=1", *short)
    found = json.loads(run_hpo("best", "--study", path, "--json").stdout)
    assert found["front"]
    assert all(trial["objectives"][1]["interval"]["mean"] <= 20000 for trial in found["front"])
