"""Runs, models and experiments in MLflow's words, found by their tags before they are created.

Knows no events and raises what MLflow raises; tracking.py decides what that means. `mlflow` is imported with the first
use, because that takes seconds. Each call of MLflow opens several sessions of its database and costs 3 to 5 ms of
processor time, however little it writes: a run is written in as few as it takes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from training.config import dump_yaml

MAX_NAME_LENGTH = 250
MAX_VALUE_LENGTH = 6000
"""Characters of a parameter's value; MLflow refuses more."""
MAX_POINTS_KEPT = 10_000
"""Metrics that a run keeps while MLflow is away; the oldest go first."""
NUM_KNOWN = 1000
"""Trials of a continued study whose status is looked up."""
NUM_NEWEST = 100
"""Trials of a continued study that are looked at for the highest number."""
RUNNING = "RUNNING"
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""

Values = Mapping[str, Any]
Metrics = Mapping[str, float]
Point = tuple[str, float, float, int]
"""A metric: name, value, Unix time in seconds, step."""


def _points() -> deque[Point]:
    return deque(maxlen=MAX_POINTS_KEPT)


@dataclass(eq=False, kw_only=True, slots=True)
class Run:
    """A run as it is meant to be. `tags`, `params`, `metrics` and `files` are what MLflow lacks of it.

    `identity` are the tags it is found by again. Times are Unix times in seconds.
    """

    experiment: str
    name: str
    identity: Mapping[str, str]
    started: float
    parent: Run | None = None
    number: int = 0
    """Which child of its parent: the trial's number, the fold's."""
    is_new: bool = False
    """Nobody wrote it before, as far as this process knows."""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    metrics: deque[Point] = field(default_factory=_points)
    files: dict[str, Values] = field(default_factory=dict)
    """Artifacts: what each YAML file holds."""
    status: str = RUNNING
    ended: float | None = None
    orphans: dict[str, str] = field(default_factory=dict)
    """Tags of runs that nobody else will end: those still RUNNING are KILLED with this one."""
    children: dict[int, Run] = field(default_factory=dict)
    """Those that are at work or not written yet."""

    id: str = ""
    artifacts: str = ""
    written_status: str = ""
    newest_child: int = -1
    """The highest number of a child that may be in MLflow from before."""
    failures: int = 0
    """How often MLflow refused it."""

    @property
    def is_written(self) -> bool:
        """MLflow has all of it."""
        lacks = self.tags or self.params or self.metrics or self.files or self.orphans
        return bool(self.id) and not lacks and self.status == self.written_status

    @property
    def is_done(self) -> bool:
        """It and its children have ended, and MLflow has all of them."""
        return all(run.is_written and run.status != RUNNING for run in self.tree())

    @property
    def depth(self) -> int:
        """0 for a study or a job alone, 1 for a trial, 2 for a fold."""
        return self.parent.depth + 1 if self.parent else 0

    @property
    def waits_for_children(self) -> bool:
        """Whether some of a trial have not ended, or MLflow lacks something of them, if only because it is away.

        A trial that it shows as over is not told again by the next sweep; a study is, and waits for nothing.
        """
        return self.parent is not None and any(not child.is_done for child in self.children.values())

    def tree(self) -> Iterator[Run]:
        """Itself, then its children, each with theirs."""
        yield self
        for child in self.children.values():
            yield from child.tree()

    def begin_again(self, at: float) -> None:
        """It runs once more: MLflow may know it, and refuses a second value for a parameter."""
        self.id, self.is_new, self.started = "", False, at
        self.status, self.ended = RUNNING, None

    def end(self, status: str, at: float) -> None:
        """It is over."""
        self.status, self.ended = status, at


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What is to be logged of a job and registered as a version of `name`."""

    folder: Path
    name: str
    metrics: Metrics = field(default_factory=dict)
    params: Values = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the model, of its version and of the job's run."""


class Runs:
    """The runs of one MLflow, in its words: knows no events, and raises what MLflow raises."""

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self._uri, self._artifact_root = uri, artifact_root
        self._experiments: dict[str, str] = {}
        # MLflow warns mostly of its own use of SQLAlchemy, nothing a user can act on. Once and for good: filters are
        # the whole process's, and a thread that restores them would undo another's.
        warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|alembic)\b")

    @cached_property
    def client(self) -> Any:
        """The MlflowClient, opened by the first use."""
        return _open_client(self._uri)

    def write(self, run: Run, points: Sequence[Point] = ()) -> None:
        """Bring MLflow to what `run` is, and add `points` to its metrics.

        What is written is taken out of `run`: after an error, another call writes the rest. Points may come twice.
        A trial ends after its folds: one that MLflow shows as over needs no second look.
        """
        self._open(run)
        self._log(run, points)
        if run.files:
            self._upload(run)
        if run.orphans:
            for orphan in self._running(run.experiment, run.orphans):
                self.client.set_terminated(orphan, "KILLED")
            run.orphans.clear()
        if run.status == run.written_status or (run.status != RUNNING and run.waits_for_children):
            return
        if run.status == RUNNING:
            self.client.update_run(run.id, status=RUNNING)
        else:
            self.client.set_terminated(run.id, run.status, _ms(run.ended or time.time()))
        run.written_status = run.status

    def _open(self, run: Run) -> None:
        """Give `run` its id: that of the run in MLflow with its identity, or of a new one."""
        if run.id:
            return
        parent, tags = run.parent, dict(run.identity)
        if parent is not None:
            self._open(parent)
            tags["mlflow.parentRunId"] = parent.id
        experiment = self._experiment(run.experiment)
        is_new = run.is_new and parent is not None and run.number > parent.newest_child
        run.is_new = False  # MLflow may create it and not be heard to say so
        found = None if is_new else next(iter(self._search(experiment, run.identity)), None)
        if found is None:
            tags |= {name: _short(value) for name, value in run.tags.items()}
            found = self.client.create_run(experiment, start_time=_ms(run.started), tags=tags, run_name=run.name)
            run.tags.clear()
        else:
            run.tags |= {name: value for name, value in tags.items() if name not in run.identity}
            known = found.data.params  # MLflow refuses a second value for a parameter
            run.params = {name: value for name, value in run.params.items() if _plain(name) not in known}
            is_study = run.identity["hpo.kind"] == "study"
            run.newest_child = self._newest_trial(experiment, run.identity) if is_study else sys.maxsize
        run.artifacts, run.written_status = found.info.artifact_uri, found.info.status
        run.id = found.info.run_id

    def _log(self, run: Run, points: Sequence[Point]) -> None:
        # In one call; the client splits what is over MLflow's limits.
        from mlflow.entities import Metric, Param, RunTag

        if not (points or run.metrics or run.params or run.tags):
            return
        self.client.log_batch(
            run.id,
            [Metric(_plain(name), value, _ms(at), step) for name, value, at, step in (*points, *run.metrics)],
            [Param(_plain(name), _short(value)) for name, value in run.params.items()],
            [RunTag(name, _short(value)) for name, value in run.tags.items()],
            synchronous=True,
        )
        for written in (run.metrics, run.params, run.tags):
            written.clear()

    def _upload(self, run: Run) -> None:
        # Not through the client, which would load the whole run once more to see where its artifacts lie.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(run.artifacts, tracking_uri=self._uri)
        with tempfile.TemporaryDirectory() as folder:
            for name, values in run.files.items():
                path = Path(folder) / name
                path.write_text(dump_yaml(values), encoding="utf-8")
                repository.log_artifact(str(path))  # type: ignore[no-untyped-call]
        run.files.clear()

    def trials(self, experiment: str, tags: Mapping[str, str]) -> dict[int, str]:
        """Status of the newest trials with these tags, by number."""
        known = self.client.get_experiment_by_name(experiment)
        newest: dict[str, Any] = {"order_by": ["attributes.start_time DESC"], "max_results": NUM_KNOWN}
        found = self._search(known.experiment_id, tags, **newest) if known else []
        return {int(run.data.tags["hpo.trial"]): run.info.status for run in found}

    def _newest_trial(self, experiment: str, study: Mapping[str, str]) -> int:
        """The highest number of a trial of that study which is in MLflow: another with a higher one is new."""
        tags = {"hpo.study_uid": study["hpo.study_uid"], "hpo.kind": "trial"}
        newest = self._search(experiment, tags, order_by=["attributes.start_time DESC"], max_results=NUM_NEWEST)
        return max((int(run.data.tags["hpo.trial"]) for run in newest), default=-1)

    def _running(self, experiment: str, tags: Mapping[str, str]) -> list[str]:
        """The runs with these tags whose status is RUNNING, whoever started them."""
        found = self._search(self._experiment(experiment), tags)
        return [run.info.run_id for run in found if run.info.status == RUNNING]

    @property
    def exists(self) -> bool:
        """Whether there is a store to ask, as far as can be seen from here; a file that is missing would be made."""
        path = _sqlite_file(self._uri)
        return path is None or path.exists()

    def unended(self, experiment: str, tags: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
        """The tags of the runs with these tags that MLflow shows as running, by id."""
        known = self.client.get_experiment_by_name(experiment)
        found = self._search(known.experiment_id, tags, status=RUNNING) if known else []
        return {run.info.run_id: run.data.tags for run in found}

    def kill(self, run: str) -> None:
        """End the run with that id as KILLED."""
        self.client.set_terminated(run, "KILLED")

    def describe(
        self, experiment: str, tags: Mapping[str, str], notes: Mapping[int, str], signed: str, page: Path | None = None
    ) -> int:
        """Give the runs with these tags their description, by trial (a study is trial -1), and `page` as an artifact.

        A description that does not end as `signed` is a person's, and stays. Returns how many runs were found.
        """
        known = self.client.get_experiment_by_name(experiment)
        found = self._search(known.experiment_id, tags) if known else []
        for run in found:
            there = run.data.tags.get(DESCRIPTION, "")
            text = notes.get(int(run.data.tags.get("hpo.trial", -1)), there)
            if text != there and (not there or there.endswith(signed)):
                self.client.set_tag(run.info.run_id, DESCRIPTION, text)
            if page is not None:
                self.client.log_artifact(run.info.run_id, str(page))
        return len(found)

    def log_model(self, run: str, model: Model) -> str:
        """Upload `model` as one of the run with that id and register it; returns ``models:/NAME/VERSION``."""
        from mlflow.entities import LoggedModelOutput, Metric, RunTag

        if not any(model.folder.iterdir()):
            raise FileNotFoundError(f"{model.folder} is empty")  # MLflow would register a model without files
        client, experiment = self.client, self.client.get_run(run).info.experiment_id
        texts = {key: _short(value) for key, value in model.params.items()}
        tags = {key: _short(value) for key, value in model.tags.items()}
        # A logged model's name takes less than a registered one's.
        logged_name = re.sub(r"[/:.%\"']", "_", model.name)
        logged = client.create_logged_model(experiment, logged_name, run, tags=tags, params=texts)
        try:
            client.log_model_artifacts(logged.model_id, str(model.folder))
        except Exception:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        # A model's NaN, unlike a run's, would be stored as 0.
        now, finite = int(time.time() * 1000), [item for item in model.metrics.items() if math.isfinite(item[1])]
        metrics = [Metric(_plain(key), value, now, 0, logged.model_id) for key, value in finite]
        client.log_batch(run, metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
        return self._register(model.name, logged, run, tags)

    def _register(self, name: str, model: Any, run: str, tags: Mapping[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Not models:/ID as the source: the SQL store would look that up in the global tracking URI.
        source, model_id = model.artifact_location, model.model_id
        version = self.client.create_model_version(name, source, run, tags=tags, model_id=model_id).version
        # The model's page shows its versions by this tag, which only a server would set by itself.
        versions = json.dumps([{"name": name, "version": version}])
        self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
        return f"models:/{name}/{version}"

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            # A server knows where its artifacts go; a database would take the working directory.
            place = self._artifact_root.absolute().as_uri() if _is_database(self._uri) else None
            self._experiments[name] = known.experiment_id if known else self.client.create_experiment(name, place)
        return self._experiments[name]

    def _search(self, experiment: str, tags: Mapping[str, str], *, status: str | None = None, **how: Any) -> list[Any]:
        # MLflow's filters cannot quote every text, such as a path with both kinds of quotes.
        quotable = {key: value for key, value in tags.items() if re.fullmatch(r"[\w./ -]+", value)}
        conditions = [f"tags.`{key}` = '{value}'" for key, value in quotable.items()]
        condition = " and ".join(conditions + ([f"attributes.status = '{status}'"] if status else []))
        found = self.client.search_runs([experiment], condition, **how)
        return [run for run in found if tags.items() <= run.data.tags.items()]


def _plain(name: str) -> str:
    """A name that MLflow takes: it is a path there, without ``..`` and empty parts."""
    plain = re.sub(r"[^/\w.\- :]", "_", name)[:MAX_NAME_LENGTH]
    return "/".join(part if part.strip(". ") else "_" for part in plain.split("/"))


def _ms(at: float) -> int:
    return int(at * 1000)


def _short(value: Any) -> str:
    return str(value)[:MAX_VALUE_LENGTH].encode("utf-8", "replace").decode()


def _is_database(uri: str) -> bool:
    return re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri) is not None


def _open_client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # stdout is for data
    # MLflow's patience, 8 tries of 120 s, would hold up the training; here the next event is the next try.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if _is_database(uri):
        _check_database(uri)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # It prints a traceback of each database error that it raises, and we say those.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if path := _sqlite_file(uri):
        _create(path, uri, mlflow.MlflowClient)
    return mlflow.MlflowClient(uri)


def _sqlite_file(uri: str) -> Path | None:
    import sqlalchemy

    url = sqlalchemy.make_url(uri) if _is_database(uri) else None
    return Path(url.database) if url and url.database and url.get_backend_name() == "sqlite" else None


def _create(path: Path, uri: str, open_client: Callable[[str], Any]) -> None:
    """Make a store that is there as a whole or not at all: MLflow cannot open one whose tables a kill cut short."""
    import sqlalchemy

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and path.stat().st_size:
            return
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        open_client(sqlalchemy.make_url(uri).set(database=str(fresh)).render_as_string(hide_password=False))
        os.replace(fresh, path)


def _check_database(uri: str) -> None:
    # MLflow tries for a minute and a half to reach a database that is not there. This raises at once.
    import sqlalchemy

    if _sqlite_file(uri):
        return
    url = sqlalchemy.make_url(uri)
    engine = sqlalchemy.create_engine(url)
    engine.connect().close()
    engine.dispose()
