"""docs/own-task.md works as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.integration.conftest import CHECKOUT, run_hpo


def test_the_documented_task_can_be_searched_and_trained(workplace: Path) -> None:
    text = (CHECKOUT / "docs" / "own-task.md").read_text()
    [module], [study] = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    (workplace / "my_tasks.py").write_text(module)
    (workplace / "studies" / "diabetes.yaml").write_text(study)

    run_hpo("validate", "--study", "diabetes")
    best = json.loads(run_hpo("sweep", "--study", "diabetes", "--json").stdout)
    assert best["metric"] == "r2"
    trained = json.loads(run_hpo("train-best", "--study", "diabetes", "--json").stdout)
    assert trained["metrics"]["r2"] > 0.1
    assert (Path(trained["model"]) / "model.pt").is_file()


def test_a_task_that_is_not_there_is_found_before_anything_runs(workplace: Path) -> None:
    refused = run_hpo("sweep", "--study", "digits", "--set", "task=not_here:Task", status=2)
    assert "no module 'not_here' here" in refused.stderr
    assert not list(workplace.glob("runs/digits"))
