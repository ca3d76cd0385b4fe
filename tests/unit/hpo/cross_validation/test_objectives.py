"""Several objectives, and constraints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.criteria import Criteria
from hpo.cross_validation import Folds
from hpo.events import JobLabel
from tests.unit.hpo.cross_validation.folds import criteria, leave, result, start, start_all
from training.config import JobConfig
from training.run_dir import Event, Record


def measured(accuracy: float, size: float, epoch: int = 1) -> Record:
    return Record(
        event=Event.EVALUATE, step=epoch, epoch=epoch, time=0.0, values={"accuracy": accuracy, "parameters": size}
    )


def judged(folder: Path, judges: Criteria, heard: list[object]) -> Folds:
    def on_epoch(fold: int, epoch: int, score: object) -> str:
        heard.append(score)
        return ""

    config = JobConfig.model_validate({"cross_validation": {"folds": 2}})
    return Folds(config, folder, JobLabel(study="demo", trial=7), judges, on_epoch)


def test_with_several_objectives_a_score_has_a_value_for_each_in_their_order(tmp_path: Path) -> None:
    heard: list[object] = []
    folds = judged(tmp_path, criteria("parameters", "accuracy"), heard)
    for fold, accuracy in enumerate((0.5, 0.7)):
        start(folds)
        folds.hear(fold, measured(accuracy, 90.0))
        folds.finish(fold, replace(result(None), metrics={"accuracy": accuracy, "parameters": 100.0}))
    assert heard == [(90.0, 0.5), (90.0, 0.7)]
    assert folds.scores == ((100.0, 0.5), (100.0, 0.7))
    assert folds.mean == (100.0, pytest.approx(0.6))
    assert folds.violations == {}


def test_a_constraint_is_on_the_mean_over_the_folds_as_far_as_they_have_reported(tmp_path: Path) -> None:
    folds = judged(tmp_path, criteria("accuracy", parameters=100.0), [])
    assert folds.violations == {}
    start_all(folds)
    folds.hear(0, measured(0.5, 130.0))
    assert folds.violations == {"parameters.at_most": 30.0}
    folds.hear(1, measured(0.5, 90.0))
    assert folds.violations == {"parameters.at_most": 10.0}


def test_a_job_that_does_not_report_the_metric_of_a_constraint_is_a_failure_that_names_it(tmp_path: Path) -> None:
    folds = judged(tmp_path, criteria("accuracy", parameters=100.0), [])
    start(folds)
    folds.finish(0, result(0.5))
    assert folds.failure is not None
    assert "no metric 'parameters' (it reports: accuracy); change constraints" in folds.failure.message


def test_folds_are_taken_over_with_every_metric_that_is_asked_for_or_trained_anew(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=True)
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    for judges, num_left in ((criteria("accuracy", accuracy=0.2), 2), (criteria("accuracy", parameters=1.0), 3)):
        folds = Folds(config, tmp_path, JobLabel(study="demo", trial=9), judges, lambda *heard: "")
        folds.take_over({})
        assert folds.num_left == num_left
        assert folds.violations == ({"accuracy.at_most": 0.3} if num_left == 2 else {})
