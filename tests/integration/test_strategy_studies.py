"""Studies that search across training strategies, one for each task: a short run of each on two gloo ranks."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.integration.conftest import CHECKOUT, run_hpo
from training.run_dir import RunDir

pytestmark = pytest.mark.nightly

STUDIES = sorted(path.stem for path in CHECKOUT.glob("studies/*_strategies.yaml"))


def test_there_is_one_for_each_task() -> None:
    assert STUDIES == ["embedding_strategies", "lm_strategies", "text_strategies", "vision_strategies"]


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_across_strategies_runs_end_to_end(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "HPO_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    text = (CHECKOUT / "studies" / f"{study}.yaml").read_text().replace("base: ", f"base: {CHECKOUT}/")
    (tmp_path / f"{study}.yaml").write_text(text + "stopping: {epochs: none, folds: none}\n")  # every fold is looked at
    path, short = f"{study}.yaml", ("--set", "data.max_samples=120", "--env", "ci")
    run_hpo("sweep", "--study", path, "--trials", "3", "--folds", "2", "--set", "training.epochs=1", *short)
    folds = sorted(Path(f"runs/{study}").glob("trial_*/fold_*"))
    jobs = {fold: RunDir(fold).load_config() for fold in folds}
    assert len(jobs) == 6
    for fold, job in jobs.items():
        outcome = RunDir(fold).load_result()
        assert outcome is not None
        assert outcome.world_size == (1 if job.distributed.strategy == "none" else 2)
    assert "fsdp" in {job.distributed.strategy for job in jobs.values()}
    done = run_hpo("train-best", "--study", path, *short[2:])
    _, load = done.stdout.split("load it:")
    exec(textwrap.dedent(load.partition("fetch it:")[0]), {})
