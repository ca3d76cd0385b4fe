"""Folds that are parked: asked to leave a checkpoint, and no more are started."""

from __future__ import annotations

from pathlib import Path

from hpo.trial import JobStatus
from tests.unit.hpo.cross_validation.folds import (
    BROKEN,
    asked_to_stop,
    evaluated,
    failed,
    folds_of,
    result,
    start,
    start_all,
)
from training.run_dir import Event, Record


def test_a_parked_fold_is_asked_to_leave_its_checkpoint_others_go_on_and_no_more_start(tmp_path: Path) -> None:
    heard: list[int] = []
    folds = folds_of(tmp_path, 4, lambda fold, epoch, value: heard.append(fold) or "")
    run_dirs = [start(folds).run_dir for _ in range(2)]
    folds.park(0)
    assert asked_to_stop(run_dirs) == [True, False]
    assert run_dirs[0].keeps_checkpoint()
    folds.hear(0, evaluated(0.1))
    folds.hear(1, evaluated(0.1))
    assert heard == [0, 1], "what it still tells counts, should it run to its end"
    assert (folds.num_left, folds.is_over, folds.is_parked) == (0, False, True)
    folds.finish(1, result(0.5))
    folds.finish(0, result(0.1, JobStatus.STOPPED))
    assert folds.is_over and folds.is_parked
    assert (folds.scores, folds.stopped, folds.failure) == ((None, 0.5, None, None), "", None)


def test_a_fold_that_was_about_to_start_when_it_was_parked_is_asked_again(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    late = folds.start({})
    folds.park(0)
    late.run_dir.prepare(late.config)
    folds.hear(0, Record(event=Event.START, step=0, epoch=0, time=0.0, values={}))
    assert late.run_dir.keeps_checkpoint()


def test_all_folds_that_run_are_parked_together(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 3)
    run_dirs = [start(folds).run_dir for _ in range(2)]
    folds.park_all()
    assert [run_dir.keeps_checkpoint() for run_dir in run_dirs] == [True, True]
    assert folds.num_left == 0


def test_a_fold_that_was_complete_before_it_heard_is_not_parked(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2)
    start_all(folds)
    folds.park(1)
    folds.finish(0, result(0.3))
    folds.finish(1, result(0.1))
    assert (folds.scores, folds.is_parked, folds.is_over) == ((0.3, 0.1), False, True)


def test_a_trial_that_loses_or_fails_while_a_fold_is_parked_is_not_parked(tmp_path: Path) -> None:
    losing = folds_of(tmp_path / "loses", 3, lambda fold, epoch, value: "it loses")
    start_all(losing)
    losing.park(0)
    losing.hear(1, evaluated(0.1))
    assert (losing.is_parked, losing.stopped) == (False, "it loses")
    failing = folds_of(tmp_path / "fails", 2)
    start_all(failing)
    failing.park(0)
    failing.finish(1, failed())
    assert (failing.is_parked, failing.failure) == (False, BROKEN)
