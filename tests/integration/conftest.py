"""Real studies and jobs on small real data, in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpo.launchers import FORK_SERVER
from training.config import JobConfig

CHECKOUT = Path(__file__).parents[2]

DIGITS = {
    "task": "image_classification",
    "data": {"name": "digits", "max_samples": 400},
    "model": {"architecture": "mlp", "hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0},
    "training": {"epochs": 2, "global_batch_size": 32, "log_every_n_steps": 1},
    "cross_validation": {"folds": 3, "fold": 0},
    "distributed": {"accelerator": "cpu"},
}

CONFIGURED = """\
study: digits
base: {checkout}/config/train.yaml
config:
  task: image_classification
  data: {{name: digits, max_samples: 300}}
  model: {{architecture: mlp, hidden_size: 16, num_hidden_layers: 1, dropout: 0.0}}
  training: {{epochs: 2}}
"""
"""A study up to the end of its configuration, which more lines may go on with."""
STUDY = (
    CONFIGURED
    + """\
objective: {{metric: accuracy, direction: maximize}}
cross_validation: {{folds: 2}}
search_space:
  optimizer.lr: {{float: [1e-3, 1e-1], log: true}}
stopping: {{epochs: none, folds: none}}
budget: {{trials: 2}}
"""
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is here takes seconds each, so `make test` runs only what is marked as quick."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("quick") is None:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    """A job of a second or two, but for the imports of its ranks."""
    return JobConfig.model_validate({**DIGITS, "output": {"root": str(tmp_path / "runs")}})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with spaces and quotes in its name, that holds one small study."""
    return enter(furnish(tmp_path), monkeypatch)


@pytest.fixture(scope="session")
def _swept_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = furnish(tmp_path_factory.mktemp("swept"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        for total in ("2", "3"):
            run_hpo("sweep", "--study", "digits", "--trials", total)
    return folder


@pytest.fixture
def swept(_swept_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace shared by tests that only read it: its study ran to two trials and was continued to three."""
    return enter(_swept_once, monkeypatch)


def furnish(parent: Path) -> Path:
    """A folder in `parent` with one small study."""
    folder = parent / 'a "quoted" folder'
    (folder / "studies").mkdir(parents=True)
    (folder / "studies" / "digits.yaml").write_text(STUDY.format(checkout=CHECKOUT))
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work there, with its own databases."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_server_left() -> Iterator[None]:
    """The fork server of the test process ends before the interpreter does."""
    yield
    FORK_SERVER.close()


def start_hpo(*arguments: str, first: str = "") -> subprocess.Popen[str]:
    """The real command line, as a process that hears Ctrl-C even where the tests run in the background of a shell.

    It runs some code `first`.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\nfrom hpo.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run_hpo(*arguments: str, status: int = 0, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run an hpo command in the working directory, some code `first`, and wait for it to end with `status`."""
    process = start_hpo(*arguments, first=first)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, f"hpo {' '.join(arguments)}: {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def kill_with_undertaker(command: subprocess.Popen[str]) -> None:
    """Kill -9, also of the process that would end what ranks have started in sessions of their own."""
    for child in psutil.Process(command.pid).children():
        if "training.job_processes" in child.cmdline():
            child.kill()
    command.kill()
    command.communicate()


def alive(*command: str) -> list[psutil.Process]:
    """Live processes with exactly this command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline() == list(command):  # empty for a zombie
                found.append(process)
    return found


def ranks_under(folder: Path) -> list[psutil.Process]:
    """Live processes, agents included, whose command line names a run directory in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()[1:]) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found
