"""How long a sweep will still take."""

from __future__ import annotations

from dataclasses import replace

from hpo.events import Event, JobLabel, TrialState
from hpo.trial import JobStatus
from tests.unit.hpo.console.played import Pass, Screen, finish, label, plain, start, sweep, tell, trial


def fold_of(seconds: float, which: JobLabel, status: JobStatus = JobStatus.COMPLETE) -> list[Event | Pass]:
    return [start(which), Pass(seconds), finish(which, status=status)]


def eta_of_trial_0(*folds: list[Event | Pass]) -> str:
    """How the line of trial 0 ends; two more trials of two folds are to come."""
    script = [item for fold in folds for item in fold]
    return plain(sweep(), trial(0), *script, tell(0, 0.8, best=0.8))[-1].partition("1/3 trials")[2]


def test_eta_is_mean_fold_time_times_remaining_folds() -> None:
    assert eta_of_trial_0(fold_of(10, label(0, 0)), fold_of(30, label(0, 1))) == "  ETA 1m 20s"


def test_eta_is_unknown_before_a_fold_is_complete() -> None:
    failed, stopped = JobStatus.FAILED, JobStatus.STOPPED
    assert eta_of_trial_0(fold_of(10, label(0, 0), failed), fold_of(5, label(0, 1), stopped)) == ""


def test_eta_ignores_folds_that_ended_early() -> None:
    stopped = fold_of(1, label(0, 1), JobStatus.STOPPED)
    assert eta_of_trial_0(fold_of(10, label(0, 0)), stopped) == "  ETA 40.0 s"


def test_a_trial_that_is_queued_again_is_not_counted() -> None:
    interrupted = replace(tell(0, None, state=TrialState.FAIL), num_finished=0)
    assert "0/3 trials" in Screen().show(sweep(), trial(0), interrupted)[-1]


def test_eta_counts_down_between_folds() -> None:
    lines = Screen().show(sweep(), trial(0), *fold_of(10, label(0)), start(label(0, 1)), Pass(4))
    assert "0/3 trials  ETA 46.0 s  elapsed 14.0 s" in lines[-3]
