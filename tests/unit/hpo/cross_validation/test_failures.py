"""A fold that fails: what is the failure of the trial, and what becomes of the other folds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.cross_validation import Folds
from hpo.events import JobLabel
from hpo.trial import JobStatus
from tests.unit.hpo.cross_validation.folds import (
    BROKEN,
    asked_to_stop,
    criteria,
    evaluated,
    failed,
    folds_of,
    result,
    start,
    start_all,
)
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import RunDir


def test_a_failing_fold_stops_the_others_and_is_the_failure_of_the_trial(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 4)
    run_dirs = [start(folds).run_dir for _ in range(3)]
    folds.finish(1, failed())
    assert asked_to_stop(run_dirs) == [True, False, True]
    assert (folds.num_left, folds.is_over) == (0, False)
    folds.finish(0, result(0.5, JobStatus.STOPPED))
    folds.finish(2, result(0.6))
    assert folds.is_over
    assert folds.failure == BROKEN


def test_the_first_failure_is_that_of_the_trial(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2)
    start_all(folds)
    folds.finish(1, failed())
    folds.finish(0, result(None, JobStatus.FAILED, failure=Failure(kind=FailureKind.SIGNAL, message="killed")))
    assert (folds.failure, folds.failed_fold) == (BROKEN, 1)


def test_a_failure_after_a_stop_is_still_a_failure(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: "it loses")
    start_all(folds)
    folds.hear(0, evaluated(0.1))
    folds.finish(0, failed())
    assert folds.failure == BROKEN


def test_another_split_in_a_later_fold_is_a_failure_of_the_data(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    run_dirs = start_all(folds)
    folds.finish(0, result(0.5, split_id="one"))
    folds.finish(1, result(0.5, split_id="another"))
    assert folds.failure is not None
    assert folds.failure.kind is FailureKind.DATA
    assert asked_to_stop(run_dirs) == [False, False, True]


def test_a_score_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    start(folds)
    folds.finish(0, result(math.nan))
    assert folds.failure == Failure(kind=FailureKind.NON_FINITE, message="accuracy is nan")


def test_a_metric_that_the_task_does_not_report_is_a_failure_that_names_those_it_reports(tmp_path: Path) -> None:
    config = JobConfig.model_validate({"cross_validation": {"folds": 2}})
    folds = Folds(config, tmp_path, JobLabel(study="demo", trial=7), criteria("f1"), lambda *heard: "")
    start(folds)
    folds.finish(0, result(0.5))
    assert folds.failure is not None
    assert folds.failure.kind is FailureKind.CONFIG
    assert "no metric 'f1' (it reports: accuracy)" in folds.failure.message


@pytest.mark.parametrize(("cache", "micro_batch"), [("auto", 16), (False, None)])
def test_only_out_of_memory_where_parts_are_the_same_training_says_how_large_they_were(
    tmp_path: Path, cache: object, micro_batch: int | None
) -> None:
    config = JobConfig.model_validate({"gradient_cache": {"enabled": cache}, "training": {"global_batch_size": 32}})
    for kind, found in ((FailureKind.OOM, micro_batch), (FailureKind.HANG, None)):
        folds = Folds(config, tmp_path, JobLabel(study="demo", trial=7), criteria("accuracy"), lambda *heard: "")
        start(folds)
        failure = Failure(kind=kind, message="no")
        folds.finish(0, replace(result(None, JobStatus.FAILED, failure=failure), world_size=2))
        assert folds.micro_batch == found


def test_folds_beside_one_that_failed_keep_their_checkpoints_where_another_trial_goes_on(tmp_path: Path) -> None:
    for goes_on in (True, False):
        config = JobConfig.model_validate({"cross_validation": {"folds": 2}})
        label, judge = JobLabel(study="demo", trial=7), criteria("accuracy")
        folder = tmp_path / str(goes_on)
        folds = Folds(config, folder, label, judge, lambda *heard: "", goes_on_after=lambda failure: goes_on)  # noqa: B023
        start_all(folds)
        folds.finish(0, failed())
        assert RunDir(folder / "fold_1").stop.exists()
        assert RunDir(folder / "fold_1").keeps_checkpoint() is goes_on
