"""Successive halving in real sweeps: a promoted trial goes on from its checkpoints, and comes to what it would have."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from tests.integration.conftest import run_hpo
from training.run_dir import Event, RunDir

EPOCHS = 9


@pytest.fixture
def halving(workplace: Path) -> Path:
    """The small study with 1, 3 or 9 epochs a trial, one job at a time."""
    study = workplace / "studies" / "digits.yaml"
    text = (
        study.read_text()
        .replace("epochs: 2", f"epochs: {EPOCHS}")
        .replace("{epochs: none, folds: none}", "{folds: none}")
    )
    one = "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n"
    study.write_text(text + one + "fidelity: {epochs: {min: 1, eta: 3}}\n")
    return workplace


def trials() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="digits", storage="sqlite:///runs/studies.db").trials


def test_few_trials_are_trained_to_the_end_and_no_epoch_twice(halving: Path) -> None:
    done = run_hpo("sweep", "--study", "digits", "--trials", "9", "--set", "output.root=other")
    assert "9/9 trials" in done.stderr.splitlines()[-1]
    assert "fold 0 of 2  paused at epoch 1  accuracy" in done.stderr and "stopped" not in done.stderr
    assert "is promoted, to 3 of 9 epochs" in done.stderr and "is promoted, to 2 folds" in done.stderr
    trained = {}
    for path in halving.glob("other/digits/trial_*/fold_*"):
        records = RunDir(path).records()
        epochs = [record.epoch for record in records if record.event is Event.EVALUATE]
        assert epochs == list(range(1, len(epochs) + 1)), path
        trained[path.parent.name, path.name] = len(epochs)
    assert set(trained.values()) == {1, 3, EPOCHS}
    assert sum(trained.values()) < 0.5 * 9 * 2 * EPOCHS
    found = optuna.load_study(study_name="digits", storage="sqlite:///other/studies.db").trials
    assert sum(trial.state.name == "COMPLETE" for trial in found) == sum(n == EPOCHS for n in trained.values()) / 2
    assert not [path for path in halving.glob("other/digits/trial_*/fold_*/checkpoints/*.pt") if is_hopeless(path)]


def is_hopeless(checkpoint: Path) -> bool:
    """Of nine trials three go on from the first rung, and one from the second; the others keep no checkpoint."""
    rung = int(checkpoint.stem.removeprefix("epoch_"))
    scores = {}
    for trial in checkpoint.parents[3].glob("trial_*"):
        records = [record for fold in trial.glob("fold_*") for record in RunDir(fold).records()]
        values = [r.values["accuracy"] for r in records if r.event is Event.EVALUATE and r.epoch == rung]
        if len(values) == 2:
            scores[trial.name] = sum(values)
    better = sum(score > scores[checkpoint.parents[2].name] for score in scores.values())
    return better >= {1: 3, 3: 1}[rung]


@pytest.mark.nightly
def test_a_promoted_trial_comes_to_the_same_score_as_one_trained_without_a_pause(halving: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "3")
    best = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)
    for fold, score in enumerate(best["fold_scores"]):
        recorded = Path(best["config"]).parent / f"fold_{fold}" / "config.yaml"
        whole = json.loads(run_hpo("train", "--config", str(recorded), "--json").stdout)
        assert whole["metrics"]["accuracy"] == score


def test_a_sweep_that_goes_on_promotes_among_all_trials(halving: Path) -> None:
    """The rungs are in the study: what the first sweep trained counts in the second."""
    run_hpo("sweep", "--study", "digits", "--trials", "2")
    before = trials()
    done = run_hpo("sweep", "--study", "digits", "--trials", "6")
    assert "6/6 trials" in done.stderr.splitlines()[-1]
    assert {trial.number for trial in trials()} > {trial.number for trial in before}
    [status] = json.loads(run_hpo("status", "--study", "digits", "--json").stdout)
    assert status["trials"]["COMPLETE"] + status["trials"]["PRUNED"] == 6


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("fidelity: {epochs: {min: 9}}", "fidelity.epochs.min 9 must be below training.epochs 9"),
        ("fidelity: {epochs: {min: 1, max: 4}}", "fidelity.epochs.max 4 is not training.epochs 9"),
        ("stopping: {epochs: median}", "stopping.epochs: fidelity decides inside folds"),
        ("stopping: {keep: 0.5}", "stopping.keep: fidelity halves by its own rungs; write fidelity.epochs.eta instead"),
    ],
)
def test_what_does_not_go_with_fidelity_is_refused(halving: Path, written: str, says: str) -> None:
    study, key = halving / "studies" / "digits.yaml", written.partition(":")[0]
    lines = [line for line in study.read_text().splitlines() if not line.startswith(f"{key}:")]
    study.write_text("\n".join([*lines, written]))
    refused = run_hpo("sweep", "--study", "digits", status=2)
    assert says in refused.stderr and "digits.yaml:" in refused.stderr
