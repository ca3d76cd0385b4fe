"""Which MLflow is written to, and that a process which does so shows nothing of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpo.background import Background
from hpo.mlflow_runs import Model
from hpo.tracking import MlflowTracker, NoTracker, connect
from tests.unit.hpo.tracking.events import ALONE, everything, send
from tests.unit.hpo.tracking.real_mlflow import Mlflow

REPOSITORY = Path(__file__).parents[4]


def test_no_credentials_in_a_notice(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri, notices = "postgresql://me:p%40ss/w@ord@db/mlflow?sslpassword=hidden", list[str]()
    tracker = MlflowTracker(uri, tmp_path, notices.append)

    def fail(uri: str) -> None:
        raise OSError(f"cannot reach {uri}: password p@ss/w@ord of p%40ss/w@ord refused")

    monkeypatch.setattr("hpo.mlflow_runs._open_client", fail)
    send(tracker, *everything())
    assert notices[0].count("***") > 3
    assert not any(secret in notices[0] + tracker.where for secret in ("ss/w", "ord@", "hidden", "me:"))


def test_mlflow_is_imported_by_its_own_thread_and_prints_nothing(tmp_path: Path) -> None:
    script = """
        import logging, sys
        from pathlib import Path
        from hpo import background
        from hpo.tracking import connect
        from tests.unit.hpo.tracking.events import everything

        background.OPENING_S = background.LAST_WRITES_S = 300.0  # the machine may be busy
        assert not {"mlflow", "torch"} & sys.modules.keys()
        tracker = connect(None, Path(sys.argv[1]), print)
        for event in everything():
            tracker(event)
        import mlflow
        from mlflow.telemetry.utils import is_telemetry_disabled
        assert is_telemetry_disabled()
        logging.getLogger("mlflow").info("chatter")
        assert mlflow.active_run() is None and not mlflow.is_tracking_uri_set()
    """
    root = tmp_path / "100%25 of a?b" / "runs"
    environment = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(root)]
    result = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(path.name for path in root.glob("[!.]*")) == ["mlartifacts", "mlflow.db"]


def test_off_tracks_nothing_with_the_same_surface(tmp_path: Path) -> None:
    tracker = connect("off", tmp_path / "runs", print)
    assert isinstance(tracker, NoTracker)
    for event in everything():
        tracker(event)
    assert tracker.log_model(ALONE, Model(folder=tmp_path, name="m")) == ""
    assert not (tmp_path / "runs").exists()
    surface = {name for name in dir(Background) if not name.startswith("_")}
    assert {name for name in dir(NoTracker) if not name.startswith("_")} == surface


def test_the_uri_comes_from_the_argument_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@tracking:5000")
    assert connect("https://other", tmp_path, print).where == "https://other"
    assert connect(None, tmp_path, print).where == "http://***@tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert connect(None, tmp_path, print).where == f"sqlite:///{tmp_path}/mlflow.db"
