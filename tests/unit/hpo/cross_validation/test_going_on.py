"""A trial that goes on where another was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.cross_validation import Folds
from hpo.events import JobLabel
from tests.unit.hpo.cross_validation.folds import criteria, going_on, leave, outcome, result, start
from training.config import JobConfig


def test_folds_that_ended_count_and_one_with_a_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=True)
    leave(tmp_path, 1, 0.2, 0.6, ended=False, saved=1)
    folds = going_on(tmp_path)
    assert folds.take_over({}) == [(0, 1, 0.1), (0, 2, 0.5), (1, 1, 0.2)], "the second epoch of fold 1 is heard again"
    assert str(folds) == "1 of 3 folds are done, 1 begun"
    assert folds.next_epochs == range(1, 2)
    jobs = [folds.start({}) for _ in range(2)]
    assert [(job.label.fold, job.resume) for job in jobs] == [(1, True), (2, False)]
    assert jobs[0].config.cross_validation.split_id == "same"
    folds.finish(1, result(0.6))
    folds.finish(2, result(0.7))
    assert folds.is_over and folds.scores == (0.5, 0.6, 0.7)


def test_a_fold_that_was_cut_short_after_its_last_epoch_is_not_paused_and_gets_its_result(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=False, saved=2)
    folds = going_on(tmp_path)
    folds.take_over({})
    assert (folds.num_left, folds.next_epochs) == (3, range(2, 2))
    assert folds.start({}).resume and not folds.is_paused


def test_a_trial_cut_short_when_all_its_folds_had_ended_is_over(tmp_path: Path) -> None:
    for fold, score in enumerate((0.5, -0.6, 0.7)):
        leave(tmp_path, fold, 0.1, score, ended=True)
    folds = going_on(tmp_path)
    folds.take_over({})
    assert folds.is_over and not folds.stopped and folds.scores == (0.5, -0.6, 0.7)


def test_what_another_configuration_trained_is_trained_anew(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=True, **{"optimizer.lr": 0.5})
    leave(tmp_path, 1, 0.1, 0.5, ended=True, **{"distributed.threads_per_rank": 7, "output.root": "elsewhere"})
    folds = going_on(tmp_path)
    folds.take_over({})
    assert folds.scores == (None, 0.5, None), "where it ran makes no difference"


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "metrics.jsonl"])
def test_what_is_damaged_is_trained_anew(tmp_path: Path, file: str) -> None:
    run_dir = leave(tmp_path, 0, 0.1, 0.5, ended=True)
    (run_dir.path / file).write_text("{]\n")
    folds = going_on(tmp_path)
    assert folds.take_over({}) == []
    assert str(folds) == "0 of 3 folds are done, 0 begun"
    assert not folds.start({}).resume


@pytest.mark.parametrize("is_there", [True, False])
def test_a_fold_that_is_known_to_have_ended_counts_whatever_has_become_of_its_files(
    tmp_path: Path, is_there: bool
) -> None:
    first = going_on(tmp_path / "first")
    start(first)
    first.finish(0, result(0.1 + 0.2))
    facts = first.facts(0)
    assert facts is not None and first.facts(1) is None
    if is_there:
        run_dir = leave(tmp_path, 0, 0.1, 0.5, ended=True)
        run_dir.result.write_text("{]")
    folds = going_on(tmp_path)
    assert folds.take_over({0: facts}) == [(0, 2, 0.1 + 0.2)]
    assert (folds.scores, folds.split_id, folds.num_left) == ((0.1 + 0.2, None, None), "same", 2)
    changed = going_on(tmp_path / "other")
    changed.config = changed.config.with_values({"optimizer.lr": 0.5})
    assert changed.take_over({0: facts}) == [], "what another configuration came to says nothing of this one"


def test_a_fold_that_had_been_stopped_is_trained_anew(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, ended=False).write_result(outcome(0.1, stopped=True))
    folds = going_on(tmp_path)
    assert folds.take_over({}) == []


def test_a_fold_goes_on_in_smaller_parts_of_the_same_batch_and_not_of_another(tmp_path: Path) -> None:
    leave(tmp_path, 0, 0.1, 0.5, ended=True)
    parts = {"epochs": 2, "max_micro_batch_size": 8}
    for changes, num_left in (({}, 2), ({"global_batch_size": 16}, 3)):
        config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {**parts, **changes}})
        folds = Folds(config, tmp_path, JobLabel(study="demo", trial=9), criteria("accuracy"), lambda *heard: "")
        folds.take_over({})
        assert folds.num_left == num_left
