"""Studies to be examined, some of a sweep that was killed, and what was found of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna

from hpo.definition import StudyDefinition
from hpo.doctor.finding import Finding, Level, mended
from hpo.ledger import LedgerStorage
from hpo.storage import open_storage
from hpo.study import FOLDER, open_study
from hpo.study_config import StudyConfig
from hpo.tally import SAMPLED
from training.config import JobConfig, Layer

CHECKOUT = Path(__file__).parents[4]
DYING = str(Path(__file__).with_name("dying.py"))
PROBE: dict[str, Any] = {
    "version": "2.13.0+cu128",
    "cuda": "12.8",
    "sees": 2,
    "kernels": ["sm_80", "sm_90", "compute_90"],
    "nccl": "2.27.5",
    "gloo": True,
}
"""What torch says on a sound machine with two GPUs."""


def opened_at(url: str) -> Iterator[LedgerStorage]:
    """A database, closed at the end."""
    database = open_storage(url)
    yield database
    database.remove_session()
    database.engine.dispose()


def new_study(database: LedgerStorage, name: str = "demo") -> optuna.Study:
    """As a sweep makes one."""
    values = {
        "study": name,
        "objective": {"metric": "accuracy", "direction": "maximize"},
        "search_space": {"optimizer.lr": {"float": [1e-4, 1e-1], "log": True}},
    }
    config, job = StudyConfig.model_validate(values), JobConfig()
    definition = StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer())
    return open_study(definition, database)


def finish(study: optuna.Study, x: float) -> optuna.Trial:
    """A complete trial of this process."""
    trial = study.ask()
    trial.set_user_attr(SAMPLED, {"x": x})
    (Path(study.user_attrs[FOLDER]) / f"trial_{trial.number:04d}").mkdir()
    study.tell(trial, x)
    return trial


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process that has printed its first line, and the line; killed at the end."""
    inherited = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=inherited) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def kill_a_sweep(study: optuna.Study, asked: int, told: int = 0) -> None:
    """One that had asked for trials and told some of them; the processes of each are left behind."""
    url = study._storage._backend.url  # type: ignore[attr-defined]
    with started(DYING, url, study.study_name, str(asked), str(told)) as (_, line):
        assert line == "ready\n"


def worst(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """Those that are not well."""
    return [finding for finding in findings if finding.level is not Level.OK]


def fixed(findings: Iterator[Finding]) -> list[str]:
    """What was done about those that have a repair."""
    return [each.text for each in map(mended, findings) if each.level is Level.FIXED]
