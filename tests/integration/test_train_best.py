"""``hpo train-best`` and what it may choose: real folds, trained again from the records of a real search."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from tests.integration.conftest import enter, furnish, run_hpo, start_hpo
from training.atomic_files import write_atomically
from training.data import split
from training.run_dir import ENSEMBLE, RunDir
from training.tasks import load_task

STUDY = Path("runs/digits")
LIMITS = "training.max_grad_norm: {choice: [1e+6, 2e+6]}"


@pytest.fixture(scope="module")
def _searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = furnish(tmp_path_factory.mktemp("searched"))
    study = folder / "studies" / "digits.yaml"
    # Gradients are never so large: all trials are one, but for what they cost.
    text = study.read_text().replace("optimizer.lr: {float: [1e-3, 1e-1], log: true}", LIMITS)
    study.write_text(text.replace("epochs: 2}", "epochs: 2}\n  optimizer: {lr: 0.03}") + "sampler: {name: grid}\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        run_hpo("sweep", "--study", "digits")
    return folder


@pytest.fixture
def searched(_searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace with a finished search: two trials of two folds that score the same."""
    return enter(_searched, monkeypatch)


def trained(*options: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run_hpo("train-best", "--study", "digits", *options, "--json").stdout)
    return values


def weights(model: Path | str) -> bytes:
    return Path(model, "model.safetensors").read_bytes()


def take_longer(trial: int, seconds: float) -> None:
    """Have the records of a trial say that its folds took longer."""
    for path in STUDY.glob(f"trial_{trial:04d}/fold_*/metrics.jsonl"):
        run_dir = RunDir(path.parent)
        first, *rest = run_dir.records()
        lines = [json.dumps(asdict(record)) for record in (replace(first, time=first.time - seconds), *rest)]
        write_atomically(run_dir.metrics, "".join(f"{line}\n" for line in lines).encode())


@pytest.mark.nightly
def test_one_standard_error_trains_the_cheaper_of_two_equals(searched: Path) -> None:
    take_longer(0, 100.0)
    best = trained()
    assert best["trial"] == best["best"]["trial"] == 0
    assert best["search"]["low"] <= best["search"]["mean"] <= best["search"]["high"]
    looked = json.loads(run_hpo("best", "--study", "digits", "--select", "one-standard-error", "--json").stdout)
    cheap = trained("--select", "one-standard-error")
    assert looked["number"] == cheap["trial"] == 1
    assert cheap["best"]["trial"] == 0
    assert cheap["cost_s"] < 100.0 < cheap["best"]["cost_s"]
    limits = [
        [RunDir(Path(folder)).load_config().training.max_grad_norm for folder in (each["run_dir"], STUDY / name)]
        for each, name in ((best, "trial_0000"), (cheap, "trial_0001"))
    ]
    assert limits[0][0] == limits[0][1] != limits[1][0] == limits[1][1]
    assert weights(best["model"]) == weights(cheap["model"])
    said = run_hpo("best", "--study", "digits", "--select", "one-standard-error").stdout
    assert "the cheapest of 2 trials whose accuracy is at least" in said
    assert "train-best --study digits --select one-standard-error" in said


def test_an_ensemble_is_the_average_of_the_folds_as_they_were_searched(searched: Path) -> None:
    ensemble = trained("--select", "ensemble", "--top-k", "3")
    members = ensemble["members"]
    assert [(member["trial"], member["fold"]) for member in members] == [(0, 0), (0, 1), (1, 0)]
    recorded = str(STUDY / "trial_0000" / "fold_1" / "config.yaml")
    fold = json.loads(run_hpo("train", "--config", recorded, "--set", "output.save_model=true", "--json").stdout)
    assert weights(members[1]["model"]) == weights(fold["model"])
    assert weights(members[0]["model"]) != weights(fold["model"])

    images, labels = held_out_samples()
    probabilities = loaded(ensemble["model"], images)
    assert ensemble["metrics"]["accuracy"] == accuracy_score(labels, probabilities.argmax(axis=1))
    # Kept in 16 bits.
    assert ensemble["metrics"]["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-3)
    assert {"accuracy", "loss"} <= members[0]["metrics"].keys()


def held_out_samples() -> tuple[np.ndarray, np.ndarray]:
    config = RunDir(STUDY / "trial_0000" / "fold_0").load_config()
    data = load_task(config.task).prepare(config)
    scored = split(data, config.cross_validation.model_copy(update={"fold": None})).scored
    return np.array(data.arrays["pixel_values"][scored]), np.array(data.arrays["labels"][scored])


def loaded(folder: str, images: np.ndarray) -> np.ndarray:
    from training.tasks.ensemble import load_ensemble

    probabilities: np.ndarray = load_ensemble(folder)(images).numpy()
    return probabilities


@pytest.mark.nightly
def test_an_ensemble_says_how_to_load_and_fetch_it_and_what_each_member_scores(searched: Path) -> None:
    said = run_hpo("train-best", "--study", "digits", "--select", "ensemble").stdout
    assert len(re.findall(r"trial_0000_fold_\d  accuracy 0\.\d+  balanced_accuracy", said)) == 2
    assert re.search(r"in the search +accuracy 0\.\d+  \(95 % interval", said)
    assert re.search(r"scored on +test split", said)
    shown, load, fetch = re.split(r"load it:|fetch it:", said)
    [folder] = re.findall(r"^model +(.+)$", shown, re.MULTILINE)
    for program in (load, fetch):
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    images, _ = held_out_samples()
    assert (loaded("model", images) == loaded(folder, images)).all()
    assert json.loads(Path("model", ENSEMBLE).read_text())["study"] == "digits"
    assert tags_of_models() >= {("ensemble", "trial 0 fold 0, trial 0 fold 1")}


def tags_of_models() -> set[tuple[str, str]]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own use of SQLAlchemy is deprecated
        from mlflow import MlflowClient

        found = MlflowClient(f"sqlite:///{Path.cwd()}/runs/mlflow.db").search_model_versions("name='digits'")
        return {(each.tags["hpo.select"], each.tags.get("hpo.members", "")) for each in found}


@pytest.mark.nightly
def test_an_interrupted_ensemble_goes_on_where_it_was(workplace: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    recorded = RunDir(STUDY / "trial_0000" / "fold_1")
    recorded.write_config(recorded.load_config().with_values({"training.epochs": 1000}))
    started = start_hpo("train-best", "--study", "digits", "--select", "ensemble")
    second = RunDir(STUDY / "best_ensemble" / "trial_0000_fold_1")
    deadline = time.monotonic() + 120
    while second.last_epoch() == 0:
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    _, command = err.strip().splitlines()[-1].split("interrupted; ")
    arguments = shlex.split(command.removesuffix(" goes on with trial_0000_fold_1"))
    assert arguments[:-1] == "hpo train-best --study digits --select ensemble --resume".split()
    first = RunDir(STUDY / "best_ensemble" / "trial_0000_fold_0").metrics.stat()

    ended = [json.loads(run_hpo(*arguments[1:], "--json").stdout) for _ in range(2)]
    assert RunDir(STUDY / "best_ensemble" / "trial_0000_fold_0").metrics.stat() == first
    starts = [record.epoch for record in second.records() if record.event == "start"]
    assert len(starts) == 2 and starts[1] > 0
    assert ended[0]["metrics"] == ended[1]["metrics"]
    assert [each["model_uri"] for each in ended] == ["models:/digits/1", "models:/digits/2"]
    refused = run_hpo(*arguments[1:], "--top-k", "2", "--resume", str(STUDY), status=2)
    assert "is no ensemble of the 2 members to train now" in refused.stderr


def test_verify_repeats_fold_0_and_trains_nothing_when_its_record_says_otherwise(searched: Path) -> None:
    before = len(list(STUDY.glob("best*")))
    matched = run_hpo("train-best", "--study", "digits", "--verify")
    assert "note: fold 0 of trial 0 was repeated exactly: accuracy 0." in matched.stderr
    assert len(list(STUDY.glob("best*"))) == before + 1

    record = RunDir(STUDY / "trial_0000" / "fold_0")
    outcome = record.load_result()
    assert outcome is not None
    record.write_result(replace(outcome, metrics={**outcome.metrics, "accuracy": 0.125}))
    refused = run_hpo("train-best", "--study", "digits", "--verify", "--select", "ensemble", status=1)
    record.write_result(outcome)
    said = f"error: fold 0 of trial 0 was not repeated: accuracy {outcome.metrics['accuracy']!r}, recorded 0.125 in"
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(list(STUDY.glob("best*"))) == before + 1


def test_a_folder_that_a_person_removed_is_named_with_the_trial_to_take_instead(searched: Path) -> None:
    folder = (STUDY / "trial_0000").rename(STUDY / "elsewhere")
    try:
        shown = run_hpo("best", "--study", "digits")
        refused = run_hpo("train-best", "--study", "digits", status=2)
    finally:
        folder.rename(STUDY / "trial_0000")
    gone = f"is gone: {(STUDY / 'trial_0000').absolute()}; --trial 1 takes the best one that is there\n"
    assert "best trial" in shown.stdout and shown.stderr.endswith(gone)
    assert refused.stderr.startswith("error: the folder of trial 0, ") and refused.stderr.endswith(gone)
    assert not refused.stdout


def test_more_members_than_folds_are_refused_before_anything_is_trained(searched: Path) -> None:
    before = sorted(STUDY.iterdir())
    refused = run_hpo("train-best", "--study", "digits", "--select", "ensemble", "--top-k", "5", status=2)
    assert "error: --top-k 5: the completed trials of study 'digits' have 4 folds" in refused.stderr
    assert sorted(STUDY.iterdir()) == before
