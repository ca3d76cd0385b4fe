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

PLOTS = {"leaderboard", "learning_curves", "parallel_coordinates", "importances", "calibration", "confusion"}


@pytest.fixture(scope="module")
def _reported_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = furnish(tmp_path_factory.mktemp("reported"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        run_hpo("sweep", "--study", "digits")
        return folder, run_hpo("report", "--study", "digits", "--json").stdout


@pytest.fixture
def reported(_reported_once: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``hpo report --json`` said of a study of two trials, in whose workplace the test is."""
    folder, printed = _reported_once
    enter(folder, monkeypatch)
    report: dict[str, Any] = json.loads(printed)
    return report


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


def test_the_page_draws_all_its_plots_without_a_network(reported: dict[str, Any], browser: Browser) -> None:
    page = Path(reported["page"])
    with served(page.parent) as address:
        drawn = browser.dom(f"{address}/{page.name}", wait_for="Confusion of the winner")
    assert drawn.count('class="main-svg"') >= len(PLOTS)
    for name in PLOTS:
        assert f'id="{name}"' in drawn


def test_optuna_dashboard_has_plots_notes_and_the_page(reported: dict[str, Any]) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(start_hpo("dashboard", "--study", "digits", "--port", str(port))):
        wait_until_it_answers(f"{address}/api/studies", deadline=time.monotonic() + 60)
        study = json.loads(urllib.request.urlopen(f"{address}/api/studies/1").read())
        [artifact] = [each for each in study["artifacts"] if each["filename"] == "report.html"]
        kept = urllib.request.urlopen(f"{address}/artifacts/1/{artifact['artifact_id']}").read()
    assert "BBC-CV from 2 trials" in study["note"]["body"]
    assert {plot["id"] for plot in study["plotly_graph_objects"]} == PLOTS
    assert artifact["filename"] == "report.html"
    assert kept == Path(reported["page"]).read_bytes()
    for trial in study["trials"]:
        assert "ended as | COMPLETE" in trial["note"]["body"]
        assert f"trial\\_000{trial['number']}" in trial["note"]["body"]


def test_mlflow_has_descriptions_and_the_page(reported: dict[str, Any]) -> None:
    kinds: dict[str, list[Any]] = {}
    for run in mlflow_runs("digits"):
        kinds.setdefault(run.data.tags["hpo.kind"], []).append(run)
    [study] = kinds["study"]
    assert "BBC-CV from 2 trials" in study.data.tags["mlflow.note.content"]
    artifacts = Path(study.info.artifact_uri.removeprefix("file://").replace("%20", " ").replace("%22", '"'))
    assert (artifacts / "report.html").read_bytes() == Path(reported["page"]).read_bytes()
    assert all("ended as | COMPLETE" in run.data.tags["mlflow.note.content"] for run in kinds["trial"])
    assert len(kinds["trial"]) == 2


def test_without_mlflow_there_is_a_report_and_a_note(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = run_hpo("report", "--study", "digits")
    assert "note: MLflow (http://127.0.0.1:9) does not take the report" in done.stderr
    assert "not corrected: fewer than two" in done.stdout
    assert (workplace / "runs" / "digits" / "report.html").is_file()
