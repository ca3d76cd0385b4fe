"""Runs, models and experiments in MLflow's words, found by their tags before they are created.

Knows no events and raises what MLflow raises; tracking.py decides what that means. `mlflow` is imported with the first
use, because that takes seconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from training.config import dump_yaml

MAX_NAME_LENGTH = 250
MAX_VALUE_LENGTH = 6000
"""Characters of a parameter's value; MLflow refuses more."""

Values = Mapping[str, Any]
Metrics = Mapping[str, float]
Points = Iterable[tuple[str, float, float, int]]
"""Metrics: name, value, Unix time in seconds, step."""
_NOTHING: Values = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run as it is from its start. `identity` are the tags it is found by again."""

    experiment: str
    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str]
    params: Values = field(default_factory=dict)
    files: Mapping[str, Values] = field(default_factory=dict)
    """Artifacts: what each YAML file holds."""


class Runs:
    """The runs of one MLflow, in its words: knows no events, and raises what MLflow raises."""

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self._uri, self._artifact_root = uri, artifact_root
        self._experiments: dict[str, str] = {}
        self._ids: dict[frozenset[tuple[str, str]], str] = {}
        self._not_ended: set[str] = set()

    @cached_property
    def _client(self) -> Any:
        return _open_client(self._uri)

    def ensure(self, run: Run, *, starts: bool = False) -> str:
        """The id of `run`, made complete and RUNNING by the first call for it and whenever it `starts`."""
        key = frozenset(run.identity.items())
        if starts or key not in self._ids:
            experiment = self._experiment(run.experiment)
            found = next(iter(self._search(experiment, run.identity)), None)
            found = found or self._client.create_run(experiment, tags=dict(run.identity), run_name=run.name)
            run_id = found.info.run_id
            self._not_ended.add(run_id)
            if found.info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
            known = found.data.params  # MLflow refuses a second value for a parameter
            params = {name: value for name, value in run.params.items() if _plain(name) not in known}
            self.log(run_id, params=params, tags=run.tags)
            for name, values in run.files.items():
                self._client.log_text(run_id, dump_yaml(values), name)
            self._ids[key] = run_id
        return self._ids[key]

    def log(self, run: str, *, metrics: Points = (), params: Values = _NOTHING, tags: Values = _NOTHING) -> None:
        """Write a batch; the client splits one that is over MLflow's limits."""
        from mlflow.entities import Metric, Param, RunTag

        self._client.log_batch(
            run,
            [Metric(_plain(name), value, int(at * 1000), step) for name, value, at, step in metrics],
            [Param(_plain(name), _short(value)) for name, value in params.items()],
            [RunTag(name, _short(value)) for name, value in tags.items()],
            synchronous=True,
        )

    def end(self, run: str, status: str) -> None:
        """Give `run` its last status."""
        self._client.set_terminated(run, status)
        self._not_ended.discard(run)

    def not_ended(self) -> list[str]:
        """The runs that were ensured here and are not ended."""
        return list(self._not_ended)

    def running(self, experiment: str, tags: Mapping[str, str]) -> list[str]:
        """The runs with these tags whose status is RUNNING, whoever started them."""
        found = self._search(self._experiment(experiment), tags)
        return [run.info.run_id for run in found if run.info.status == "RUNNING"]

    def log_model(self, run: str, folder: Path, name: str, metrics: Metrics, params: Values) -> str:
        """Upload `folder` as a logged model of `run` and register it; returns ``models:/NAME/VERSION``."""
        from mlflow.entities import LoggedModelOutput, Metric

        if not any(folder.iterdir()):
            raise FileNotFoundError(f"{folder} is empty")  # MLflow would register a model without files
        client, experiment = self._client, self._client.get_run(run).info.experiment_id
        texts = {key: _short(value) for key, value in params.items()}
        # A logged model's name takes less than a registered one's.
        model = client.create_logged_model(experiment, re.sub(r"[/:.%\"']", "_", name), run, params=texts)
        try:
            client.log_model_artifacts(model.model_id, str(folder))
        except Exception:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        # A model's NaN, unlike a run's, would be stored as 0.
        now, finite = int(time.time() * 1000), [item for item in metrics.items() if math.isfinite(item[1])]
        client.log_batch(run, [Metric(_plain(key), value, now, 0, model.model_id) for key, value in finite])
        client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
        return self._register(name, model, run)

    def _register(self, name: str, model: Any, run: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Not models:/ID as the source: the SQL store would look that up in the global tracking URI.
        source, model_id = model.artifact_location, model.model_id
        version = self._client.create_model_version(name, source, run, model_id=model_id).version
        # The model's page shows its versions by this tag, which only a server would set by itself.
        versions = json.dumps([{"name": name, "version": version}])
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
        return f"models:/{name}/{version}"

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            known = self._client.get_experiment_by_name(name)
            # A server knows where its artifacts go; a database would take the working directory.
            place = self._artifact_root.absolute().as_uri() if _is_database(self._uri) else None
            self._experiments[name] = known.experiment_id if known else self._client.create_experiment(name, place)
        return self._experiments[name]

    def _search(self, experiment: str, tags: Mapping[str, str]) -> list[Any]:
        # MLflow's filters cannot quote every text, such as a path with both kinds of quotes.
        quotable = {key: value for key, value in tags.items() if re.fullmatch(r"[\w./ -]+", value)}
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in quotable.items())
        found = self._client.search_runs([experiment], condition)
        return [run for run in found if tags.items() <= run.data.tags.items()]


def _plain(name: str) -> str:
    """A name that MLflow takes: it is a path there, without ``..`` and empty parts."""
    plain = re.sub(r"[^/\w.\- :]", "_", name)[:MAX_NAME_LENGTH]
    return "/".join(part if part.strip(". ") else "_" for part in plain.split("/"))


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
    return mlflow.MlflowClient(uri)


def _check_database(uri: str) -> None:
    # MLflow tries for a minute and a half to reach a database that is not there. This raises at once.
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    engine.connect().close()
    engine.dispose()
