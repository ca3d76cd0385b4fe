"""``hpo export`` and ``hpo import``: a search that was killed goes on in another folder, and the first one is gone."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.integration.conftest import enter, furnish, run_hpo, start_hpo

SERIAL = "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n"


def test_a_search_that_was_killed_goes_on_elsewhere_to_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (enter(furnish(tmp_path / name), monkeypatch) for name in ("first", "second"))
    for place in (first, second):
        study = place / "studies" / "digits.yaml"
        study.write_text(study.read_text().replace("epochs: 2}", "epochs: 40}") + SERIAL)
    enter(first, monkeypatch)
    sweep = start_hpo("sweep", "--study", "digits")
    fold = first / "runs/digits/trial_0001/fold_1"
    while not [*fold.glob("checkpoints/epoch_*.pt")] and sweep.poll() is None:
        time.sleep(0.005)
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    assert fold.exists() and not (fold / "result.json").exists(), "the sweep was over too soon"

    file = tmp_path / "digits.hpo"
    exported = json.loads(run_hpo("export", "--study", "digits", str(file), "--json").stdout)
    assert (exported["trials"], exported["folds"], exported["checkpoints"]) == (2, 4, 1)
    shutil.rmtree(first)
    enter(second, monkeypatch)
    imported = run_hpo("import", str(file)).stdout
    assert "3, 1 of them waiting" in imported and "hpo sweep --study digits" in imported.replace(
        "-c sweep", "hpo sweep"
    )

    went_on = run_hpo("sweep", "--study", "digits").stderr
    assert "trial 2 goes on where trial 1 was: 1 of 2 folds are done, 1 begun" in went_on
    again = json.loads(run_hpo("replay", "--study", "digits", "--trial", "2", "--fold", "1", "--json").stdout)
    assert again["is_sound"] and again["score"] == again["recorded"]
    verified = run_hpo("train-best", "--study", "digits", "--verify")
    assert "was repeated exactly" in verified.stderr
    assert str(tmp_path / "first") not in "".join(path.read_text() for path in second.rglob("config.yaml"))
