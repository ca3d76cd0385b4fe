"""The folds of one trial, one by one or side by side: what they come to, and who is asked to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.criteria import Criteria
from hpo.cross_validation import Folds
from hpo.events import JobLabel
from hpo.job import Job
from hpo.study_config import ConstraintConfig, ObjectiveConfig
from hpo.trial import JobStatus, TrialResult
from training.checksums import Position
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Event, Outcome, Record, RunDir

BROKEN = Failure(kind=FailureKind.USER_CODE, message="ValueError: no")


def criteria(*metrics: str, **limits: float) -> Criteria:
    """To maximize `metrics`, none of the others above its limit."""
    constraints = [ConstraintConfig(metric=metric, at_most=limit) for metric, limit in limits.items()]
    return Criteria([ObjectiveConfig(metric=metric, direction="maximize") for metric in metrics], constraints)


def folds_of(folder: Path, num_folds: int = 3, on_epoch: Callable[[int, int, float], str] | None = None) -> Folds:
    config = JobConfig.model_validate({"cross_validation": {"folds": num_folds}})
    label = JobLabel(study="demo", trial=7)
    return Folds(config, folder, label, criteria("accuracy"), on_epoch or (lambda fold, epoch, value: ""))


def start(folds: Folds) -> Job:
    """The next fold, as far as a rank gets before it first looks for a request to stop."""
    job = folds.start({})
    job.run_dir.prepare(job.config)
    return job


def start_all(folds: Folds) -> list[RunDir]:
    return [start(folds).run_dir for _ in range(folds.num_left)]


def evaluated(value: float, epoch: int = 1) -> Record:
    return Record(event=Event.EVALUATE, step=10 * epoch, epoch=epoch, time=0.0, values={"accuracy": value})


def result(
    value: float | None,
    status: JobStatus = JobStatus.COMPLETE,
    *,
    split_id: str = "same",
    failure: Failure | None = None,
) -> TrialResult:
    return TrialResult(
        status=status,
        metrics={} if value is None else {"accuracy": value},
        failure=failure,
        duration_s=1.0,
        world_size=1,
        run_dir=RunDir(Path("anywhere")),
        split_id=split_id,
    )


def failed() -> TrialResult:
    return result(None, JobStatus.FAILED, failure=BROKEN)


def asked_to_stop(run_dirs: list[RunDir]) -> list[bool]:
    return [run_dir.stop.exists() for run_dir in run_dirs]


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


# Failures


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


# Stops


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


# A trial that goes on where another was cut short


def leave(folder: Path, fold: int, *values: float, ended: bool, saved: int = 0, **changes: object) -> RunDir:
    """A fold that reported `values`, ended or not, with a checkpoint after `saved` epochs."""
    run_dir = RunDir(folder / f"fold_{fold}")
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    run_dir.prepare(config.with_values({"cross_validation.fold": fold, **changes}))
    for epoch, value in enumerate(values, start=1):
        run_dir.append(evaluated(value, epoch))
    if saved:
        run_dir.checkpoints.mkdir()
        run_dir.checkpoint(Position(saved), "00000000").touch()
    if ended:
        run_dir.write_result(outcome(values[-1]))
    return run_dir


def outcome(value: float, *, stopped: bool = False) -> Outcome:
    return Outcome(
        metrics={"accuracy": value},
        stopped=stopped,
        epochs=2,
        steps=20,
        train_samples=8,
        eval_samples=2,
        split_id="same",
        world_size=1,
        device="cpu",
    )


def going_on(folder: Path) -> Folds:
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    return Folds(config, folder, JobLabel(study="demo", trial=9), criteria("accuracy"), lambda fold, epoch, value: "")


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


# Parking


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


# Several objectives, and constraints


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
