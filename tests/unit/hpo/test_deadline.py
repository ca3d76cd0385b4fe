"""Which folds still fit before a deadline, and which of those that run are parked, by a clock of the test's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from hpo.deadline import ENDING_S, LOOKS, Deadline
from hpo.events import JobLabel
from training.run_dir import Event, Record


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def label(trial: int = 0, fold: int = 0) -> JobLabel:
    return JobLabel(study="demo", trial=trial, fold=fold)


def record(event: Event, epoch: int) -> Record:
    return Record(event=event, step=10 * epoch, epoch=epoch, time=0.0, values={})


class Run:
    """One fold of `epochs` epochs under a deadline at 100."""

    def __init__(self, epochs: int, known_epoch_s: tuple[float, ...] = ()) -> None:
        self.clock = Clock()
        self.deadline = Deadline(100.0, known_epoch_s, self.clock)
        self.deadline.start(label(), range(epochs))

    def tell(self, at: float, event: Event, epoch: int) -> list[JobLabel]:
        """Those to park, after the fold told this at that time."""
        self.clock.now = at
        self.deadline.hear(label(), record(event, epoch))
        return self.deadline.late()

    def wait(self, until: float) -> list[JobLabel]:
        self.clock.now = until
        return self.deadline.late()


# What is started


def test_the_first_fold_is_started_unless_the_deadline_is_there() -> None:
    clock = Clock()
    deadline = Deadline(100.0, (), clock)
    assert deadline.expected_s(0, 5) is None
    clock.now = 100.0 - ENDING_S
    assert deadline.fits(0, 5)
    clock.now += 0.1
    assert not deadline.fits(0, 5)


def test_a_fold_fits_by_the_median_of_its_trial_else_of_the_study_epoch_by_epoch() -> None:
    clock = Clock()
    deadline = Deadline(100.0, (2.0,), clock)
    for seconds, trial in ((10.0, 1), (30.0, 1), (20.0, 1), (90.0, 2)):
        deadline.start(label(trial), range(10))
        deadline.finish(label(trial), seconds)
    assert deadline.expected_s(1, 10) == 20.0
    assert deadline.expected_s(1, 5) == 10.0
    assert deadline.expected_s(2, 10) == 90.0
    assert deadline.expected_s(3, 10) == 20.0, "of 2 1 3 2 9 seconds an epoch"
    clock.now = 100.0 - ENDING_S - 20.0
    assert deadline.fits(1, 10) and not deadline.fits(2, 10) and not deadline.fits(1, 11)


def test_a_fold_that_was_stopped_or_failed_does_not_say_how_long_one_takes() -> None:
    deadline = Deadline(100.0, (), Clock())
    deadline.start(label(), range(10))
    deadline.finish(label(), None)
    assert deadline.expected_s(0, 10) is None


# What is parked


def test_a_fold_is_parked_when_its_next_epoch_would_not_end_in_time() -> None:
    run = Run(epochs=9)
    told = [run.tell(20.0 * epoch, Event.EVALUATE if epoch else Event.START, epoch) for epoch in range(4)]
    assert told == [[]] * 4, "the fourth epoch will end at 80"
    assert run.tell(80.0, Event.EVALUATE, 4) == [label()]


def test_an_epoch_that_takes_longer_than_expected_is_not_waited_for_beyond_the_last_moment() -> None:
    run = Run(epochs=9)
    run.tell(0.0, Event.START, 0)
    run.tell(20.0, Event.EVALUATE, 1)
    run.tell(40.0, Event.EVALUATE, 2)
    assert run.deadline.wait_s == 1.5 * 20.0
    assert run.wait(69.9) == []
    assert run.wait(70.0) == [label()], "past 100 - 5 - 2 x 20, when it might not hear it in time"


def test_a_fold_that_ends_in_time_is_left_alone() -> None:
    run = Run(epochs=3)
    told = [run.tell(at, Event.EVALUATE if epoch else Event.START, epoch) for at, epoch in ((0, 0), (10, 1), (20, 2))]
    assert told == [[], [], []]
    assert run.tell(30.0, Event.EVALUATE, 3) == []
    assert run.wait(99.0) == [], "it has finished its last epoch"


def test_a_fold_whose_epoch_will_not_end_in_time_trains_until_there_is_just_the_time_to_save() -> None:
    run = Run(epochs=9, known_epoch_s=(960.0,))
    assert run.tell(0.0, Event.START, 0) == []
    assert run.tell(2.0, Event.TRAIN, 0) == []
    assert run.wait(100.0 - ENDING_S - LOOKS * 2.0 - 0.1) == []
    assert run.wait(100.0 - ENDING_S - LOOKS * 2.0) == [label()]


@pytest.mark.parametrize("pause_s", [1.0, 10.0])
def test_a_fold_is_asked_early_enough_for_its_slowest_look(pause_s: float) -> None:
    run = Run(epochs=9)
    run.tell(0.0, Event.START, 0)
    run.tell(pause_s, Event.TRAIN, 0)
    latest = 100.0 - ENDING_S - LOOKS * pause_s
    assert run.deadline.wait_s == pytest.approx(latest - pause_s)
    assert run.wait(latest - 0.1) == []
    assert run.wait(latest) == [label()]


def test_a_fold_is_asked_once_and_then_the_deadline_itself_is_waited_for() -> None:
    run = Run(epochs=9)
    run.tell(0.0, Event.START, 0)
    assert run.wait(96.0) == [label()]
    assert run.wait(97.0) == []
    assert run.deadline.wait_s == 3.0
    run.clock.now = 100.0
    assert run.deadline.is_over and run.deadline.wait_s == 0.0


def test_once_a_fold_was_parked_no_new_trial_begins_but_a_short_fold_of_another_may() -> None:
    run = Run(epochs=9)
    run.deadline.start(label(1), range(1))
    run.deadline.finish(label(1), 0.5)
    for epoch in range(4):
        run.tell(20.0 * epoch, Event.EVALUATE if epoch else Event.START, epoch)
    assert run.deadline.fits(None, 9)
    assert run.tell(80.0, Event.EVALUATE, 4) == [label()]
    assert not run.deadline.fits(None, 1)
    assert run.deadline.fits(1, 1)


def test_without_a_deadline_everything_fits_and_nothing_is_parked() -> None:
    clock = Clock()
    deadline = Deadline(math.inf, (), clock)
    deadline.start(label(), range(5))
    clock.now = 1e9
    deadline.hear(label(), record(Event.START, 0))
    assert deadline.fits(0, 5) and not deadline.late() and not deadline.is_over
    assert deadline.wait_s == math.inf
