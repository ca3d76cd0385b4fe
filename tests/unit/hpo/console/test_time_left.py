"""How long a sweep will still take."""

from __future__ import annotations

from dataclasses import replace

from hpo.events import Estimate, TrialState
from tests.unit.hpo.console.played import Pass, Screen, finish, label, plain, start, sweep, tell, trial


def test_what_is_left_is_shared_by_as_many_jobs_as_ran_side_by_side() -> None:
    both = [start(label(0, 0)), start(label(0, 1)), finish(label(0, 0)), finish(label(0, 1))]
    lines = plain(sweep(), trial(0), *both, Estimate(job_s=160.0), tell(0, 0.8, best=0.8))
    assert lines[-1].endswith("1/3 trials  ETA 1m 20s")


def test_nothing_is_said_before_anything_is_known() -> None:
    ended = [start(label(0)), finish(label(0)), Estimate(job_s=None)]
    assert plain(sweep(), trial(0), *ended, tell(0, 0.8, best=0.8))[-1].endswith("1/3 trials")


def test_a_trial_that_is_queued_again_is_not_counted() -> None:
    interrupted = replace(tell(0, None, state=TrialState.FAIL), num_finished=0)
    assert "0/3 trials" in Screen().show(sweep(), trial(0), interrupted)[-1]


def test_eta_counts_down_between_folds() -> None:
    lines = Screen().show(
        sweep(),
        trial(0),
        start(label(0)),
        Pass(10),
        finish(label(0)),
        Estimate(job_s=50.0),
        start(label(0, 1)),
        Pass(4),
    )
    assert "0/3 trials  ETA 46.0 s  elapsed 14.0 s" in lines[-3]
