"""What people look at: the pages of optuna-dashboard and MLflow, in a real headless browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.conftest import start_hpo
from tests.integration.test_sweep import mlflow_runs

if TYPE_CHECKING:
    from tests.conftest import Browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def test_the_dashboard_shows_the_study_and_its_trials(swept: Path, browser: Browser) -> None:
    port = free_port()
    with serving(start_hpo("dashboard", "--study", "digits", "--port", str(port))):
        assert "digits" in browser.dom(f"http://127.0.0.1:{port}/dashboard", wait_for="digits")
        page = browser.dom(f"http://127.0.0.1:{port}/dashboard/studies/1/trials", wait_for="Trial 2")
        assert "optimizer.lr" in page
        assert all(f"Trial {number}" in page for number in range(3))


def test_the_dashboard_listens_on_this_machine_only(swept: Path, browser: Browser) -> None:
    port = free_port()
    with serving(start_hpo("dashboard", "--port", str(port))):
        browser.dom(f"http://127.0.0.1:{port}/dashboard", wait_for="digits")
        table = Path("/proc/net/tcp").read_text()
        listening = [line.split()[1] for line in table.splitlines()[1:] if line.split()[3] == "0A"]
        assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_mlflow_shows_the_study_its_trials_and_folds(swept: Path, browser: Browser) -> None:
    [study] = [run for run in mlflow_runs("digits") if run.data.tags["hpo.kind"] == "study"]
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///runs/mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with serving(
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    ):
        runs = f"http://127.0.0.1:{port}/#/experiments/{study.info.experiment_id}/runs"
        browser.dom(runs, wait_for=study.info.run_name, timeout_s=120)
        page = browser.dom(f"{runs}/{study.info.run_id}", wait_for="trial 2")  # its child runs
        assert all(f"trial {number}" in page for number in range(3))
