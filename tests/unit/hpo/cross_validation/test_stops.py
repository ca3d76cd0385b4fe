"""A trial that is stopped: who is asked to, and what still counts."""

from __future__ import annotations

import math
from pathlib import Path

from hpo.trial import JobStatus
from tests.unit.hpo.cross_validation.folds import asked_to_stop, evaluated, folds_of, result, start, start_all
from training.run_dir import Event, Record


def test_every_epoch_is_heard_with_its_fold_but_for_values_that_are_no_number(tmp_path: Path) -> None:
    heard: list[tuple[int, int, float]] = []
    folds = folds_of(tmp_path, 2, lambda *epoch: heard.append(epoch) or "")
    start_all(folds)
    folds.hear(1, evaluated(0.2))
    folds.hear(0, Record(event=Event.TRAIN, step=3, epoch=0, time=0.0, values={"accuracy": 0.9}))
    folds.hear(0, evaluated(math.nan))
    folds.hear(0, evaluated(0.4, epoch=2))
    assert heard == [(1, 1, 0.2), (0, 2, 0.4)]


def test_a_stop_in_one_fold_asks_all_that_run_and_no_other_is_started(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 4, lambda fold, epoch, value: "it loses" if fold == 1 else "")
    run_dirs = [start(folds).run_dir for _ in range(3)]
    folds.hear(0, evaluated(0.1))
    assert asked_to_stop(run_dirs) == [False] * 3
    folds.hear(1, evaluated(0.1))
    assert asked_to_stop(run_dirs) == [True] * 3
    assert (folds.stopped, folds.num_left, folds.is_over) == ("it loses", 0, False)
    for fold in range(3):
        folds.finish(fold, result(0.1, JobStatus.STOPPED))
    assert folds.is_over and folds.failure is None
    assert (folds.stopped, folds.scores) == ("it loses", (None,) * 4)


def test_a_fold_that_was_about_to_start_when_the_trial_was_stopped_is_asked_again(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: "it loses")
    start(folds)
    late = folds.start({})
    folds.hear(0, evaluated(0.1))  # before there is a folder to ask in
    assert not late.run_dir.path.exists()
    late.run_dir.prepare(late.config)
    folds.hear(1, Record(event=Event.START, step=0, epoch=0, time=0.0, values={}))
    assert late.run_dir.stop.exists()


def test_a_fold_whose_start_cleared_the_request_is_asked_again(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: "it loses")
    _, second = start_all(folds)
    folds.hear(0, evaluated(0.1))
    second.prepare(folds.config)
    assert not second.stop.exists()
    folds.hear(1, Record(event=Event.START, step=0, epoch=0, time=0.0, values={}))
    assert second.stop.exists()


def test_a_fold_that_was_complete_before_it_heard_still_counts(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 3, lambda fold, epoch, value: "it loses")
    start_all(folds)
    folds.hear(0, evaluated(0.1))
    folds.finish(1, result(0.4))
    folds.finish(0, result(0.1, JobStatus.STOPPED))
    folds.finish(2, result(0.2, JobStatus.STOPPED))
    assert (folds.scores, folds.stopped) == ((None, 0.4, None), "it loses")


def test_what_a_fold_still_tells_when_another_was_stopped_is_heard(tmp_path: Path) -> None:
    """It may run to its end before it is asked, and its trial be complete: then its curve is to be complete, too."""
    heard: list[tuple[int, int]] = []
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: heard.append((fold, epoch)) or "it loses")  # type: ignore[func-returns-value]
    start_all(folds)
    folds.hear(0, evaluated(0.1))
    folds.hear(1, evaluated(0.2))
    folds.park(1)
    folds.hear(1, evaluated(0.3, 2))
    assert heard == [(0, 1), (1, 1), (1, 2)]


def test_a_trial_whose_folds_are_all_scored_was_not_stopped(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: "it loses")
    start_all(folds)
    folds.hear(1, evaluated(0.1))
    folds.finish(0, result(0.3))
    folds.finish(1, result(0.1))
    assert folds.is_over and folds.failure is None
    assert (folds.scores, folds.stopped) == ((0.3, 0.1), "")


def test_a_fold_that_someone_else_stopped_stops_the_trial(tmp_path: Path) -> None:
    folds = folds_of(tmp_path)
    run_dirs = start_all(folds)
    folds.finish(1, result(0.1, JobStatus.STOPPED))
    assert folds.stopped == "fold 1 was asked to stop"
    assert asked_to_stop(run_dirs) == [True, False, True]


def test_the_first_reason_to_stop_is_kept(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: f"fold {fold} loses")
    start_all(folds)
    folds.hear(1, evaluated(0.1))
    folds.hear(0, evaluated(0.1))
    assert folds.stopped == "fold 1 loses"


def test_a_fold_that_was_stopped_before_its_first_evaluation_has_not_failed(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, 2, lambda fold, epoch, value: "it loses")
    start_all(folds)
    folds.hear(0, evaluated(0.1))
    folds.finish(0, result(0.1, JobStatus.STOPPED))
    folds.finish(1, result(None, JobStatus.STOPPED))
    assert (folds.failure, folds.stopped) == (None, "it loses")
