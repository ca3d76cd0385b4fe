"""The folds of a trial, one by one or side by side: in which order they start, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.cross_validation import Folds
from hpo.events import JobLabel
from tests.unit.hpo.cross_validation.folds import criteria, folds_of, result, start, start_all
from training.config import JobConfig


def test_folds_start_in_order_each_with_its_number_its_folder_and_the_changes(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    jobs = [folds.start({"distributed.devices": devices}) for devices in (1, 2, 4)]
    assert [job.label for job in jobs] == [JobLabel(study="demo", trial=7, fold=fold) for fold in range(3)]
    assert [job.config.cross_validation.fold for job in jobs] == [0, 1, 2]
    assert [job.config.distributed.devices for job in jobs] == [1, 2, 4]
    assert [job.run_dir.path for job in jobs] == [tmp_path / f"fold_{fold}" for fold in range(3)]
    assert folds.config.cross_validation.fold is None
    assert (folds.num_running, folds.num_left) == (3, 0)


def test_repeats_are_further_folds(tmp_path: Path) -> None:
    config = JobConfig.model_validate({"cross_validation": {"folds": 2, "repeats": 3}})
    folds = Folds(config, tmp_path, JobLabel(study="demo", trial=7), criteria("accuracy"), lambda *heard: "")
    assert len(start_all(folds)) == 6


def test_the_label_of_the_next_fold_is_that_of_the_job_it_becomes(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    assert [folds.next_label == folds.start({}).label for _ in range(3)] == [True] * 3


def test_scores_go_by_fold_number_though_folds_finish_in_another_order(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    start_all(folds)
    for fold, value in ((2, 0.3), (0, 0.1), (1, 0.5)):
        assert not folds.is_over
        folds.finish(fold, result(value))
    assert folds.scores == (0.1, 0.5, 0.3)
    assert folds.mean == pytest.approx(0.3)
    assert folds.is_over and not folds.stopped and folds.failure is None


def test_a_trial_is_over_only_when_no_fold_runs_and_none_is_left(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2)
    assert not folds.is_over
    start(folds)
    folds.finish(0, result(0.5))
    assert (folds.is_over, folds.num_left, folds.num_running) == (False, 1, 0)
    start(folds)
    folds.finish(1, result(0.5))
    assert folds.is_over


def test_a_later_fold_must_find_the_split_of_the_first(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    assert start(folds).config.cross_validation.split_id is None
    folds.finish(0, result(0.5, split_id="abc"))
    assert start(folds).config.cross_validation.split_id == "abc"
