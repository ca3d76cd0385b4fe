"""A model in MLflow's registry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hpo.mlflow_runs import Model
from tests.unit.hpo.tracking.events import ALONE, finished, send, started
from tests.unit.hpo.tracking.real_mlflow import Mlflow


def test_a_model_is_registered_with_its_run_after_the_job_finished(mlflow: Mlflow, model_folder: Path) -> None:
    tracker, metrics = mlflow.tracker(), {"accuracy": 0.9, "loss": math.nan}
    send(tracker, started(ALONE), finished(ALONE))
    params, tags = {"optimizer.lr": "0.1"}, {"hpo.select": "best"}
    model = Model(folder=model_folder, name="bert.cv", metrics=metrics, params=params, tags=tags)
    uris = [tracker.log_model(ALONE, model) for _ in range(2)]
    assert uris == ["models:/bert.cv/1", "models:/bert.cv/2"]
    client, run = mlflow.client, mlflow.run("job")
    assert run.info.status == "FINISHED"
    models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
    assert {(model.status, model.source_run_id) for model in models} == {("READY", run.info.run_id)}
    assert models[0].params == {"optimizer.lr": "0.1"}
    assert [model.tags["hpo.select"] for model in models] == ["best"] * 2
    assert run.data.tags["hpo.select"] == "best"
    assert [(metric.key, metric.value) for metric in models[0].metrics] == [("accuracy", 0.9)]
    assert {model.tags["mlflow.modelVersions"] for model in models} == {
        f'[{{"name": "bert.cv", "version": {number}}}]' for number in (1, 2)
    }
    versions = [client.get_model_version("bert.cv", number) for number in ("1", "2")]
    assert [version.tags for version in versions] == [{"hpo.select": "best"}] * 2
    assert {version.run_id for version in versions} == {run.info.run_id}
    assert {version.source for version in versions} == {model.artifact_location for model in models}
    files = {file.path for file in client.list_logged_model_artifacts(models[0].model_id)}
    assert files == {"model.safetensors", "config.json"}
    assert mlflow.notices == []


def test_a_model_that_cannot_be_registered_is_said_and_does_not_raise(mlflow: Mlflow, tmp_path: Path) -> None:
    tracker, empty, missing = mlflow.tracker(), tmp_path / "empty", tmp_path / "missing"
    empty.mkdir()
    send(tracker, started(ALONE), finished(ALONE))
    for folder in (empty, missing):
        assert tracker.log_model(ALONE, Model(folder=folder, name="bert_cv")) == ""
    assert [str(folder) in notice for folder, notice in zip((empty, missing), mlflow.notices, strict=True)]
    assert mlflow.client.search_registered_models() == []


def test_a_model_that_was_not_uploaded_is_not_ready(
    mlflow: Mlflow, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    tracker = mlflow.tracker()
    send(tracker, started(ALONE))
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    assert tracker.log_model(ALONE, Model(folder=model_folder, name="bert_cv")) == ""
    (model,) = mlflow.client.search_logged_models([mlflow.run("job").info.experiment_id])
    assert (model.status, "disk full" in mlflow.notices[0]) == ("FAILED", True)
