"""When jobs are given up, on a clock of our own."""

from __future__ import annotations

from hpo.events import JobLabel
from hpo.study_config import RecoveryConfig
from hpo.watchdog import Watchdog
from training.errors import FailureKind

FIRST, SECOND = (JobLabel(study="demo", trial=3, fold=fold) for fold in range(2))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(**limits: float) -> tuple[Watchdog, Clock]:
    clock = Clock()
    return Watchdog(RecoveryConfig.model_validate({"no_progress_timeout": 60, **limits}), clock), clock


def kinds(watchdog: Watchdog, *waiting: JobLabel) -> dict[JobLabel, FailureKind]:
    return {label: failure.kind for label, failure in watchdog.overdue(waiting).items()}


def test_a_job_that_tells_nothing_hangs_and_one_that_does_does_not() -> None:
    watchdog, clock = watch()
    watchdog.start(FIRST)
    watchdog.start(SECOND)
    clock.now = 50.0
    watchdog.hear(SECOND)
    clock.now = 61.0
    assert kinds(watchdog) == {FIRST: FailureKind.HANG}
    assert "fold 0 made no progress for" in watchdog.overdue()[FIRST].message
    watchdog.finish(FIRST)
    assert kinds(watchdog) == {}


def test_a_job_that_waits_for_devices_does_not_hang() -> None:
    watchdog, clock = watch(fold_timeout=80, trial_timeout=80)
    watchdog.start(FIRST)
    for clock.now in (50.0, 100.0):
        assert kinds(watchdog, FIRST, SECOND) == {}
    clock.now = 150.0
    assert kinds(watchdog) == {}
    clock.now = 161.0
    assert kinds(watchdog) == {FIRST: FailureKind.HANG}


def test_a_fold_may_take_so_long_and_its_trial_too_however_much_they_tell() -> None:
    watchdog, clock = watch(fold_timeout=100, trial_timeout=150)
    watchdog.start(FIRST)
    for clock.now in (50.0, 99.0):
        watchdog.hear(FIRST)
        assert kinds(watchdog) == {}
    clock.now = 101.0
    assert kinds(watchdog) == {FIRST: FailureKind.TIMEOUT}
    watchdog.finish(FIRST)
    watchdog.start(SECOND)
    clock.now = 151.0
    assert "recovery.trial_timeout" in watchdog.overdue()[SECOND].message
    watchdog.forget(3)
    assert kinds(watchdog) == {}, "another trial of the same number has its own time"
