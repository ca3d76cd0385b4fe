"""A trial whose folds are trained so far and no further, until it is promoted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpo.cross_validation import Folds
from hpo.events import JobLabel
from hpo.trial import JobStatus
from tests.unit.hpo.cross_validation.folds import criteria, evaluated, failed, leave, result, start
from training.config import JobConfig
from training.errors import FailureKind


def folds_until(folder: Path, *until: int) -> Folds:
    """Of three folds of two epochs."""
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    label = JobLabel(study="demo", trial=9)
    return Folds(config, folder, label, criteria("accuracy"), lambda fold, epoch, value: "", until=until)


def test_folds_that_are_not_to_be_trained_are_not_begun_and_the_trial_is_paused_then(tmp_path: Path) -> None:
    folds = folds_until(tmp_path, 1, 0, 0)
    assert (folds.num_left, folds.next_epochs) == (1, range(1))
    job = start(folds)
    assert job.config.output.pause_after == 1
    assert folds.is_over is False and not folds.is_paused
    folds.hear(0, evaluated(0.5))
    paused = result(0.5, JobStatus.STOPPED)
    assert folds.share_trained(0, paused) == 0.5
    folds.finish(0, paused)
    assert folds.is_over and folds.is_paused and not folds.stopped
    assert folds.scores == (None, None, None)


def test_a_promoted_trial_goes_on_from_the_checkpoint_and_begins_the_folds_that_are_next(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.5, ended=False, saved=1)
    folds = folds_until(tmp_path, 2, 2, 0)
    assert folds.take_over({}) == [(0, 1, 0.5)]
    first, second = start(folds), folds.start({})
    assert [(first.label.fold, first.resume), (second.label.fold, second.resume)] == [(0, True), (1, False)]
    assert (first.config.output.pause_after, folds.num_left) == (None, 0)
    for fold, value in enumerate((0.6, 0.7)):
        folds.hear(fold, evaluated(value, 2))
        assert folds.share_trained(fold, result(value)) == (0.5, 1.0)[fold]
        folds.finish(fold, result(value))
    assert folds.is_over and folds.is_paused
    assert folds.scores == (0.6, 0.7, None)


def test_one_that_comes_to_its_last_fold_is_complete(tmp_path: Path) -> None:
    for fold, score in enumerate((0.5, 0.6)):
        leave(tmp_path, fold, 0.1, score, ended=True)
    folds = folds_until(tmp_path, 2, 2, 2)
    folds.take_over({})
    assert folds.num_left == 1
    start(folds)
    folds.hear(2, evaluated(0.7, 2))
    folds.finish(2, result(0.7))
    assert folds.is_over and not folds.is_paused and folds.scores == (0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (math.nan, FailureKind.NON_FINITE, "accuracy is nan"),
        (None, FailureKind.CONFIG, "the task reports no metric 'accuracy'"),
    ],
)
def test_a_score_that_is_missing_at_the_pause_is_a_failure_and_not_a_stop(
    tmp_path: Path, value: float | None, kind: FailureKind, message: str
) -> None:
    """Else a misspelled metric would cost the whole budget, with nothing said."""
    folds = folds_until(tmp_path, 1, 0, 0)
    start(folds)
    if value is not None:
        folds.hear(0, evaluated(value))
    folds.finish(0, result(value, JobStatus.STOPPED, paused_at=1))
    assert folds.failure is not None and folds.failure.kind is kind and message in folds.failure.message
    assert not folds.is_paused and not folds.stopped


def test_how_long_a_fold_takes_is_known_from_the_first_pause_however_early(tmp_path: Path) -> None:
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 9}})
    label = JobLabel(study="demo", trial=9)
    folds = Folds(config, tmp_path, label, criteria("accuracy"), lambda fold, epoch, value: "", until=(1, 1, 1))
    assert folds.epochs_left == 3
    start(folds)
    folds.hear(0, evaluated(0.5))
    assert folds.epochs_left == 2
    assert folds.share_trained(0, result(0.5, JobStatus.STOPPED, paused_at=1)) == pytest.approx(1 / 9)


def test_one_that_was_there_already_is_over_before_it_begins(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=True)
    folds = folds_until(tmp_path, 2, 0, 0)
    folds.take_over({})
    assert folds.is_over and folds.is_paused


@pytest.mark.parametrize("until", [(1, 0, 0), (2, 0, 0)])
def test_a_fold_that_was_stopped_or_failed_on_its_way_is_no_pause(tmp_path: Path, until: tuple[int, ...]) -> None:
    folds = folds_until(tmp_path, *until)
    start(folds)
    stopped = result(None, JobStatus.STOPPED)
    assert folds.share_trained(0, stopped) is None
    folds.finish(0, stopped)
    assert folds.stopped == "fold 0 was asked to stop" and not folds.is_paused
    broken = folds_until(tmp_path / "other", *until)
    start(broken)
    broken.finish(0, failed())
    assert broken.failure is not None and not broken.is_paused
    assert broken.share_trained(0, failed()) is None
