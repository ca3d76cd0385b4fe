"""A disk that fills up while a sweep runs: said at once, nobody's fault, and the same command goes on afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SmallDisk
from tests.integration.conftest import ranks_under, run_hpo
from tests.integration.test_sweep import trials
from training.run_dir import RunDir

FILLING_TASK = """\
from pathlib import Path
from training.tasks.image_classification import ImageClassification

class Filling(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        if Path("deadly").exists():
            model.register_forward_pre_hook(fill)
        return model

def fill(module, inputs):
    disk = Path(Path("deadly").read_text())
    if not any(disk.glob("runs/digits/trial_*/fold_*/checkpoints/epoch_*")):
        return  # not before something is worth keeping
    try:
        with open(disk / "ballast", "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param("sqlite:///studies.db", id="runs"),
        pytest.param(None, id="runs, study and MLflow", marks=pytest.mark.quick),
    ],
)
def test_a_full_disk_ends_the_sweep_and_the_same_command_goes_on(
    workplace: Path, small_disk: SmallDisk, storage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("filling.py").write_text(FILLING_TASK)
    Path("deadly").write_text(str(small_disk.path))
    places = ["--set", f"output.root={small_disk.path}/runs", *(["--storage", storage] if storage else [])]
    sizes = ["--trials", "1", "--set", "training.epochs=4"]
    command = ["sweep", "--study", "digits", "--set", "task=filling:Filling", *sizes, *places]
    url = storage or f"sqlite:///{small_disk.path}/runs/studies.db"
    monkeypatch.setattr("tests.integration.test_sweep.STORAGE", url)
    if storage:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")

    ended = run_hpo(*command, status=1)
    assert "cannot be written: " in ended.stderr and "; make room" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "the same command continues" in ended.stderr
    assert not ranks_under(small_disk.path)
    if storage:
        assert "queued again" in ended.stderr
        assert "WAITING" in {trial.state.name for trial in trials()}

    Path("deadly").unlink()
    small_disk.free()
    done = run_hpo(*command)
    assert "goes on where trial" in done.stderr
    told = trials()
    assert [trial.state.name for trial in told].count("COMPLETE") == 1
    assert {trial.state.name for trial in told} == {"COMPLETE", "FAIL"}
    assert not any(trial.user_attrs.get("hpo:retries") for trial in told)
    assert all("hpo:interrupted" in trial.user_attrs for trial in told if trial.state.name == "FAIL")
    folds = [RunDir(path.parent) for path in small_disk.path.glob("runs/digits/trial_*/fold_*/result.json")]
    assert len(folds) == 2
    for fold in folds:
        evaluated = [record.epoch for record in fold.records() if record.event == "evaluate"]
        assert evaluated == [1, 2, 3, 4]
