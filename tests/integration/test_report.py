"""`hpo report` on a real search: terminal, JSON, page, optuna-dashboard and MLflow say the same."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import wait_until_it_answers
from tests.integration.conftest import enter, furnish, run_hpo, start_hpo
from tests.integration.test_browser import free_port, serving
from tests.integration.test_sweep import mlflow_runs, trials

if TYPE_CHECKING:
    from tests.conftest import Browser

SHARED = {"parallel_coordinates", "importances"}
PLOTS = {
    "digits": {"leaderboard", "learning_curves", "calibration", "confusion", *SHARED},
    "pareto": {"front_0_1", *SHARED},
}
SAYS = {"digits": "BBC-CV from 2 trials", "pareto": "that no other dominates"}
SEVERAL = {
    "study: digits": "study: pareto",
    "maximize}": "maximize}, {metric: parameters, direction: minimize}]",
    "objective: ": "objective: [",
    "optimizer.lr: {float: [1e-3, 1e-1], log: true}": "model.hidden_size: {choice: [8, 64]}\nsampler: {name: grid}",
    "folds: none": "folds: dominance",
}
"""What makes the other study of the small one."""
each_kind = pytest.mark.parametrize("study", ["digits", "pareto"])


@pytest.fixture(scope="module")
def _reported_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = furnish(tmp_path_factory.mktemp("reported"))
    text = (folder / "studies" / "digits.yaml").read_text()
    for old, new in SEVERAL.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "studies" / "pareto.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        for study in PLOTS:
            run_hpo("sweep", "--study", study)
        return folder, {study: run_hpo("report", "--study", study, "--json").stdout for study in PLOTS}


@pytest.fixture
def reports(_reported_once: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What ``hpo report --json`` said of a study of two trials, and of one with two objectives, in whose workplace the
    test is."""
    folder, printed = _reported_once
    enter(folder, monkeypatch)
    return {study: json.loads(text) for study, text in printed.items()}


@pytest.fixture
def reported(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the study with one objective."""
    return reports["digits"]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on 127.0.0.1."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_json_has_the_winner_the_correction_and_the_costs(reported: dict[str, Any]) -> None:
    told = trials()
    best = max(told, key=lambda trial: trial.value or 0.0)
    assert [each["number"] for each in reported["leaderboard"]][0] == best.number == reported["best"]["number"]
    assert reported["corrected"]["num_trials"] == 2
    assert reported["corrected"]["num_samples"] == 240
    assert reported["corrected"]["low"] <= reported["corrected"]["value"] <= reported["corrected"]["high"]
    assert reported["cost"]["fold_epochs"] == 2 * 2 * 2
    assert sum(map(sum, reported["confusion"])) == 240
    hits = sum(row[number] for number, row in enumerate(reported["confusion"]))
    assert hits / 240 == pytest.approx(best.value)  # the folds are of one size


def test_the_terminal_says_it_in_words_and_where_the_page_is(reported: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    printed = run_hpo("report", "--study", "digits", "--output", str(page)).stdout
    for text in ("corrected     accuracy", "by BBC-CV from 2 trials", "tied with it", "false stops   not measured"):
        assert text in printed
    assert str(page) in printed
    assert page.read_text().startswith("<!DOCTYPE html>")
    refused = run_hpo("report", "--study", "digits", "--output", "nowhere/report.html", status=2)
    assert "there is no folder" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_study_without_a_score_is_told_in_a_line(workplace: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1", "--set", "model.architecture=no_such_thing", status=2)
    assert "error: " in run_hpo("report", "--study", "digits", status=2).stderr


def test_a_study_whose_trials_failed_has_a_report_that_says_why(workplace: Path) -> None:
    path = workplace / "studies" / "digits.yaml"
    text = path.read_text().replace("{float: [1e-3, 1e-1], log: true}", "{choice: [1e+38]}")  # a step overflows
    path.write_text(text.replace("task:", "optimizer: {name: sgd}\n  task:"))
    run_hpo("sweep", "--study", "digits", "--set", "training.max_grad_norm=null", status=1)
    printed = run_hpo("report", "--study", "digits").stdout
    assert "none: study 'digits' has no completed trial yet" in printed
    assert "failed        2 x non_finite" in printed
    assert "train-best" not in printed
    assert (workplace / "runs" / "digits" / "report.html").is_file()


def test_the_front_is_reported_with_every_trial_in_its_place(reports: dict[str, dict[str, Any]]) -> None:
    found = reports["pareto"]
    best = json.loads(run_hpo("best", "--study", "pareto", "--json").stdout)
    assert found["front"] == best["front"]
    assert len(found["front"]) + len(found["dominated"]) == 2
    assert found["cost"]["fold_epochs"] == 2 * 2 * 2
    assert found["importances"]["parameters"] == {"model.hidden_size": 1.0}
    printed = run_hpo("report", "--study", "pareto").stdout
    for text in (
        "objectives   maximize accuracy, minimize parameters",
        "that no other dominates",
        "spent        8 epochs",
    ):
        assert text in printed
    assert f"train-best --study pareto --trial {found['front'][0]['number']}" in printed


@each_kind
def test_the_page_draws_all_its_plots_without_a_network(
    reports: dict[str, dict[str, Any]], browser: Browser, study: str
) -> None:
    page = Path(reports[study]["page"])
    with served(page.parent) as address:
        drawn = browser.dom(f"{address}/{page.name}", wait_for="Importance of hyperparameters")
    assert drawn.count('class="main-svg"') >= len(PLOTS[study])
    assert SAYS[study] in drawn
    for name in PLOTS[study]:
        assert f'id="{name}"' in drawn


@each_kind
def test_optuna_dashboard_has_plots_notes_and_the_page(reports: dict[str, dict[str, Any]], study: str) -> None:
    port, number = free_port(), [*PLOTS].index(study) + 1
    address = f"http://127.0.0.1:{port}"
    with serving(start_hpo("dashboard", "--study", study, "--port", str(port))):
        wait_until_it_answers(f"{address}/api/studies", deadline=time.monotonic() + 60)
        shown = json.loads(urllib.request.urlopen(f"{address}/api/studies/{number}").read())
        [artifact] = [each for each in shown["artifacts"] if each["filename"] == "report.html"]
        kept = urllib.request.urlopen(f"{address}/artifacts/{number}/{artifact['artifact_id']}").read()
    assert SAYS[study] in shown["note"]["body"]
    assert {plot["id"] for plot in shown["plotly_graph_objects"]} == PLOTS[study]
    assert artifact["filename"] == "report.html"
    assert kept == Path(reports[study]["page"]).read_bytes()
    for trial in shown["trials"]:
        assert "ended as | COMPLETE" in trial["note"]["body"]
        assert f"trial\\_000{trial['number']}" in trial["note"]["body"]


@each_kind
def test_mlflow_has_descriptions_and_the_page(reports: dict[str, dict[str, Any]], study: str) -> None:
    kinds: dict[str, list[Any]] = {}
    for run in mlflow_runs(study):
        kinds.setdefault(run.data.tags["hpo.kind"], []).append(run)
    [whole] = kinds["study"]
    assert SAYS[study] in whole.data.tags["mlflow.note.content"]
    artifacts = Path(whole.info.artifact_uri.removeprefix("file://").replace("%20", " ").replace("%22", '"'))
    assert (artifacts / "report.html").read_bytes() == Path(reports[study]["page"]).read_bytes()
    assert all("ended as | COMPLETE" in run.data.tags["mlflow.note.content"] for run in kinds["trial"])
    assert len(kinds["trial"]) == 2


def test_without_mlflow_there_is_a_report_and_a_note(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = run_hpo("report", "--study", "digits")
    assert "note: MLflow (http://127.0.0.1:9) does not take the report" in done.stderr
    assert "not corrected: fewer than two" in done.stdout
    assert (workplace / "runs" / "digits" / "report.html").is_file()
