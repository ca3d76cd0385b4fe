"""MLflow on SQLite, looked at, and let fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.tracking import MlflowTracker


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mlflow:
    """One MLflow on SQLite, looked at through a client of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri, self.notices = root, f"sqlite:///{root}/mlflow.db", list[str]()
        self.clock = Clock()

    def tracker(self) -> MlflowTracker:
        """A tracker as a new process would make it."""
        artifacts = self.root / "mlartifacts"
        return MlflowTracker(self.uri, artifacts, self.notices.append, clock=self.clock)

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, kind: str | None = None) -> list[Any]:
        """All runs of `kind`, oldest first."""
        client = self.client
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        found = [run for run in found if kind in (None, run.data.tags["hpo.kind"])]
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_name))

    def run(self, kind: str) -> Any:
        """The only run of `kind`."""
        (run,) = self.runs(kind)
        return run

    def artifact(self, run: Any, name: str) -> str:
        path: str = self.client.download_artifacts(run.info.run_id, name)
        return Path(path).read_text()

    def statuses(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.runs()}


WRITES = ("get_experiment_by_name", "search_runs", "create_run", "log_batch", "log_text", "set_terminated")


def break_mlflow(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *, takes_s: float = 0.0, calls: tuple[str, ...] = WRITES
) -> list[str]:
    """Let these calls fail, each after `takes_s`, until the monkeypatch is undone. Returns the growing list of them."""
    from mlflow import MlflowClient

    attempts: list[str] = []

    def fail(name: str) -> Callable[..., None]:
        def broken(*args: Any, **kwargs: Any) -> None:
            attempts.append(name)
            clock.now += takes_s
            raise ConnectionError("the database is down")

        return broken

    for name in calls:
        monkeypatch.setattr(MlflowClient, name, fail(name))
    return attempts
