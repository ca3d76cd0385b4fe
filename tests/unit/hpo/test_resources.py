"""Who gets how many devices: what a study asks for, what was measured, and what is left at the end of a budget."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from hpo.definition import StudyDefinition
from hpo.devices import Hardware
from hpo.events import JobLabel
from hpo.resources import Resources, devices_per_job
from hpo.study_config import StudyConfig
from training.config import JobConfig, Layer
from training.run_dir import Event, Record

FOUR_GPUS = Hardware(gpus=("0", "1", "2", "3"), cores=8)
NO_GPU = Hardware(gpus=(), cores=8)
MANY = 1000
"""Jobs that are left when a budget has only begun."""


def define(
    resources: dict[str, Any] | None = None, *, trials: int = 100, folds: int = 5, **distributed: Any
) -> StudyDefinition:
    """A study of `trials` trials of `folds` folds."""
    config = StudyConfig.model_validate(
        {
            "study": "demo",
            "objective": {"metric": "accuracy", "direction": "maximize"},
            "search_space": {"optimizer.lr": {"float": [0.1, 0.2]}},
            "budget": {"trials": trials},
            "resources": resources or {},
        }
    )
    job = JobConfig.model_validate(
        {
            "distributed": distributed,
            "cross_validation": {"folds": folds},
            "training": {"global_batch_size": 32},
        }
    )
    return StudyDefinition(config=config, job=job, environment="local", layer=Layer(), settings=Layer())


def job(batch: int = 32) -> JobConfig:
    return JobConfig.model_validate({"training": {"global_batch_size": batch}})


def label(trial: int = 0, fold: int = 0) -> JobLabel:
    return JobLabel(study="demo", trial=trial, fold=fold)


class Machine:
    """The resources of a machine, and what they said."""

    def __init__(
        self, definition: StudyDefinition, hardware: Hardware = FOUR_GPUS, study: optuna.Study | None = None
    ) -> None:
        self.said: list[str] = []
        self.resources = Resources(definition, hardware, self.said.append, study)

    def start(self, trial: int, fold: int, *, left: int = MANY, batch: int = 32) -> int:
        """Start the next job as a sweep does; the devices it got, 0 when it has to wait."""
        if not self.resources.has_room:
            return 0
        offered = self.resources.offer(job(batch), left, fold=fold)
        if offered:
            self.resources.take(label(trial, fold), offered)
        return offered

    def train(self, trial: int, fold: int, *, step_s: float, steps: int = 10, first: int = 0) -> None:
        """That job reports its start after `first` steps, some steps and its evaluation."""
        for event, step in ((Event.START, 0), (Event.TRAIN, steps // 2), (Event.EVALUATE, steps)):
            record = Record(event=event, step=first + step, epoch=0, time=1000.0 + step * step_s, values={})
            self.resources.hear(label(trial, fold), record)

    def end(self, trial: int, fold: int) -> None:
        self.resources.give_back(label(trial, fold))

    def measure(self, *, on_all_s: float, on_one_s: float, first: int = 0) -> None:
        """The first trial shows how long a step takes on all devices (fold 0, after `first` steps) and on one (1)."""
        assert self.start(0, 0) == 4
        self.train(0, 0, step_s=on_all_s, first=first)
        self.end(0, 0)
        assert self.start(0, 1) == 1
        self.train(0, 1, step_s=on_one_s)


# What a study asks for


@pytest.mark.parametrize(
    ("resources", "distributed", "per_job", "trials_at_once", "jobs_at_once"),
    [
        ({}, {}, 1, 4, 4),
        ({"devices_per_trial": 2}, {}, 2, 2, 2),
        ({"devices_per_trial": 9}, {}, 4, 1, 1),
        ({"max_parallel_trials": 1}, {}, 1, 1, 4),
        ({"max_parallel_trials": 3}, {}, 1, 3, 4),
        ({"max_parallel_trials": 9}, {}, 1, 4, 4),
        ({"max_parallel_trials": 2, "parallel_folds": "off"}, {}, 1, 2, 2),
        ({}, {"devices": 2}, 2, 2, 2),
        ({}, {"devices": 3}, 3, 1, 1),
        ({}, {"devices": 9}, 4, 1, 1),
        ({}, {"devices": [2, 3]}, 2, 1, 1),
        ({"devices_per_trial": 1}, {"devices": 4}, 1, 4, 4),
        ({}, {"strategy": "ddp"}, 4, 1, 1),
        ({}, {"strategy": "fsdp"}, 4, 1, 1),
        ({}, {"strategy": "fsdp", "devices": 2}, 2, 2, 2),
        ({}, {"strategy": "none"}, 1, 4, 4),
        ({"devices_per_trial": 4}, {"strategy": "none"}, 1, 4, 4),
        ({"max_parallel_trials": 6, "parallel_folds": "off"}, {"share_devices": True}, 1, 6, 6),
        ({"max_parallel_trials": 6}, {"share_devices": True}, 1, 6, 30),
        ({}, {"accelerator": "cpu"}, 1, 8, 8),
    ],
)
def test_jobs_share_four_gpus_as_the_study_says(
    resources: dict[str, Any], distributed: dict[str, Any], per_job: int, trials_at_once: int, jobs_at_once: int
) -> None:
    definition = define(resources, **distributed)
    shared = Resources(definition, FOUR_GPUS, print)
    assert (shared.per_job, shared.max_trials, shared.max_jobs) == (per_job, trials_at_once, jobs_at_once)
    assert devices_per_job(definition, FOUR_GPUS) == per_job


@pytest.mark.parametrize(
    ("resources", "distributed", "per_job", "trials_at_once", "jobs_at_once"),
    [
        ({}, {}, 1, 8, 8),
        ({}, {"threads_per_rank": 2}, 1, 4, 4),
        ({}, {"threads_per_rank": 16}, 1, 1, 1),
        ({"devices_per_trial": 2}, {"threads_per_rank": 2}, 2, 2, 2),
        ({"devices_per_trial": 3}, {}, 3, 2, 2),
        ({}, {"devices": 4}, 4, 2, 2),
        ({}, {"devices": [0, 5]}, 2, 1, 1),
        ({}, {"strategy": "ddp"}, 1, 8, 8),
        ({}, {"strategy": "fsdp", "devices": 2}, 2, 4, 4),
        ({}, {"strategy": "none", "devices": 2}, 1, 8, 8),
        ({"max_parallel_trials": 9, "parallel_folds": "off"}, {"share_devices": True}, 1, 9, 9),
    ],
)
def test_jobs_share_eight_cores_as_the_study_says(
    resources: dict[str, Any], distributed: dict[str, Any], per_job: int, trials_at_once: int, jobs_at_once: int
) -> None:
    shared = Resources(define(resources, **distributed), NO_GPU, print)
    assert (shared.per_job, shared.max_trials, shared.max_jobs) == (per_job, trials_at_once, jobs_at_once)


@pytest.mark.parametrize(("trials", "at_once"), [(1, 1), (7, 1), (8, 2), (12, 3), (16, 4), (1000, 4)])
def test_by_itself_a_search_runs_at_most_a_quarter_of_its_trials_at_a_time(trials: int, at_once: int) -> None:
    assert Resources(define(trials=trials), FOUR_GPUS, print).max_trials == at_once


def test_devices_that_are_free_take_further_jobs_until_none_is() -> None:
    machine = Machine(define({"devices_per_trial": 2}))
    assert [machine.start(trial, 0) for trial in range(3)] == [2, 2, 0]
    assert not machine.resources.has_room
    machine.end(0, 0)
    assert machine.start(2, 0) == 2
    assert not machine.resources.has_room


def test_a_job_that_ended_twice_frees_its_devices_once() -> None:
    machine = Machine(define({"devices_per_trial": 2}))
    assert [machine.start(trial, 0) for trial in range(2)] == [2, 2]
    machine.end(0, 0)
    machine.end(0, 0)
    assert machine.start(2, 0) == 2
    assert not machine.resources.has_room


@pytest.mark.parametrize(
    ("distributed", "hardware", "devices", "changes"),
    [
        ({}, FOUR_GPUS, 1, {"distributed.devices": 1, "distributed.threads_per_rank": 2}),
        ({}, FOUR_GPUS, 4, {"distributed.threads_per_rank": 2}),  # `auto`, which does without those in use
        ({"threads_per_rank": 5}, FOUR_GPUS, 1, {"distributed.devices": 1}),
        ({"devices": [1, 3]}, FOUR_GPUS, 2, {}),
        ({}, NO_GPU, 1, {"distributed.devices": 1, "distributed.threads_per_rank": 1}),
        ({}, Hardware(gpus=("0", "1"), cores=1), 1, {"distributed.devices": 1, "distributed.threads_per_rank": 1}),
    ],
)
def test_the_cores_are_shared_out_with_the_devices_unless_the_study_says_how(
    distributed: dict[str, Any], hardware: Hardware, devices: int, changes: dict[str, Any]
) -> None:
    resources = Resources(define(**distributed), hardware, print)
    assert resources.take(label(), devices) == changes


def test_a_search_that_has_the_machine_for_one_job_gives_it_all_cores() -> None:
    one_at_a_time = define({"max_parallel_trials": 1, "parallel_folds": "off"})
    assert Resources(one_at_a_time, NO_GPU, print).take(label(), 1)["distributed.threads_per_rank"] == 8


# Shared devices


def test_jobs_that_share_devices_are_spread_over_the_gpus() -> None:
    resources = Resources(define({"max_parallel_trials": 8}, share_devices=True), FOUR_GPUS, print)
    taken = [resources.take(label(trial), 1)["distributed.devices"] for trial in range(8)]
    assert sorted(gpu for [gpu] in taken) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_job_that_shares_devices_gets_the_gpus_with_the_fewest_jobs() -> None:
    resources = Resources(define({"max_parallel_trials": 4}, share_devices=True), FOUR_GPUS, print)
    gpus = {trial: resources.take(label(trial), 1)["distributed.devices"] for trial in range(4)}
    resources.give_back(label(1))
    assert resources.take(label(4), 1)["distributed.devices"] == gpus[1]


def test_jobs_of_two_ranks_that_share_devices_are_on_gpus_of_their_own_while_there_are_any() -> None:
    wish = define({"devices_per_trial": 2, "max_parallel_trials": 4}, share_devices=True)
    resources = Resources(wish, FOUR_GPUS, print)
    first, second, third = (resources.take(label(trial), 2)["distributed.devices"] for trial in range(3))
    assert sorted(first + second) == [0, 1, 2, 3]
    assert len(set(third)) == 2


def test_shared_devices_are_never_full_and_never_measured() -> None:
    machine = Machine(define({"max_parallel_trials": 6, "parallel_folds": "off"}, share_devices=True))
    assert [machine.start(trial, 0) for trial in range(6)] == [1] * 6
    assert not machine.resources.has_room
    machine.train(0, 0, step_s=1.0)
    machine.end(0, 0)
    assert machine.start(0, 1) == 1
    machine.train(0, 1, step_s=1.0)
    assert machine.said == []


# What was measured


def test_the_first_job_gets_all_devices_when_many_are_left_and_nothing_runs_beside_it() -> None:
    machine = Machine(define())
    assert machine.start(0, 0, left=5) == 4
    assert not machine.resources.has_room


def test_nothing_is_measured_when_few_jobs_are_left() -> None:
    machine = Machine(define())
    assert machine.start(0, 0, left=4) == 1


def test_where_all_devices_are_less_than_so_many_single_ones_jobs_run_side_by_side_and_it_is_said_once() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.5, on_one_s=1.0)
    assert [machine.start(trial, 0) for trial in (1, 2, 3, 4)] == [1, 1, 1, 0]
    machine.train(1, 0, step_s=1.0)
    machine.train(0, 1, step_s=2.0)
    [said] = machine.said
    assert said.startswith("jobs run side by side, on one device each: a step takes 500 ms on 4 devices and 1e+03 ms")
    assert "efficiency 50%" in said


@pytest.mark.parametrize("on_one_s", [1.0, 1.5])
def test_where_all_devices_are_as_fast_as_so_many_single_ones_one_job_at_a_time_has_them(on_one_s: float) -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.25, on_one_s=on_one_s)
    [said] = machine.said
    assert said.startswith("all devices work on one job: ")
    assert not machine.resources.has_room  # while fold 1 runs on its one device
    assert machine.resources.offer(job(), MANY, fold=2) == 0
    machine.end(0, 1)
    assert [machine.start(0, 2), machine.start(1, 0)] == [4, 0]
    machine.end(0, 2)
    assert [machine.start(1, 0), machine.start(2, 0)] == [4, 0]
    assert len(machine.said) == 1


def test_before_it_is_known_what_is_better_further_jobs_get_one_device_each() -> None:
    machine = Machine(define())
    assert machine.start(0, 0) == 4
    machine.train(0, 0, step_s=1.0)
    machine.end(0, 0)
    assert [machine.start(0, 1), machine.start(1, 0)] == [1, 1]
    assert machine.said == []


def test_other_trials_show_nothing_since_their_steps_are_others() -> None:
    machine = Machine(define())
    assert machine.start(0, 0) == 4
    machine.train(0, 0, step_s=1.0)
    machine.end(0, 0)
    assert machine.start(1, 1) == 1
    machine.train(1, 1, step_s=9.0)
    assert machine.said == []


def test_a_first_job_that_never_began_to_train_is_followed_by_another_on_all_devices() -> None:
    machine = Machine(define())
    assert machine.start(0, 0) == 4
    machine.end(0, 0)
    assert machine.start(1, 0) == 4
    machine.train(1, 0, step_s=1.0)
    machine.end(1, 0)
    assert machine.start(1, 1) == 1
    machine.train(1, 1, step_s=1.0)
    assert len(machine.said) == 1


def test_the_other_folds_of_a_trial_that_goes_on_run_side_by_side_and_nobody_waits_for_all_devices() -> None:
    machine = Machine(define())
    assert [machine.start(0, fold) for fold in (1, 2)] == [1, 1]
    assert [machine.start(1, 0), machine.start(0, 3)] == [1, 1]
    for trial, fold in ((0, 1), (0, 2), (0, 3), (1, 0)):
        machine.train(trial, fold, step_s=1.0)
        machine.end(trial, fold)
    assert machine.start(2, 0) == 4


@pytest.mark.parametrize(
    ("on_all_s", "devices", "said"),
    [
        (0.5, [1, 1], "jobs run side by side, on one device each, as measured before (scaling efficiency 50%)"),
        (0.2, [4, 0], "all devices work on one job, as measured before (scaling efficiency 125%)"),
    ],
)
def test_what_was_measured_is_known_when_the_study_is_continued_on_the_same_devices(
    on_all_s: float, devices: list[int], said: str
) -> None:
    study = optuna.create_study()
    Machine(define(), study=study).measure(on_all_s=on_all_s, on_one_s=1.0)
    again = Machine(define(), study=study)
    assert [again.start(1, 0), again.start(2, 0)] == devices
    assert again.said == [said]
    others = (define({"devices_per_trial": 1}), FOUR_GPUS), (define(), Hardware(gpus=("0", "1"), cores=8))
    assert [Machine(*other, study=study).said for other in others] == [[], []]


@pytest.mark.parametrize(
    ("resources", "distributed"),
    [
        ({"devices_per_trial": 1}, {}),
        ({}, {"devices": 1}),
        ({}, {"strategy": "none"}),
        ({"max_parallel_trials": 1, "parallel_folds": "off"}, {}),
    ],
)
def test_where_the_study_says_how_many_devices_nothing_is_measured(
    resources: dict[str, Any], distributed: dict[str, Any]
) -> None:
    assert Machine(define(resources, **distributed)).start(0, 0) == 1


@pytest.mark.parametrize("first", [0, 5000])
def test_a_fold_that_goes_on_from_a_checkpoint_measures_its_own_steps(first: int) -> None:
    machine = Machine(define(trials=20))
    machine.measure(on_all_s=1.0, on_one_s=1.2, first=first)
    assert any("a step takes 1e+03 ms on 4 devices and 1.2e+03 ms on one" in text for text in machine.said)


def test_a_batch_that_all_devices_cannot_share_is_not_spread() -> None:
    machine = Machine(define())
    assert machine.start(0, 0, batch=30) == 1


def test_a_batch_that_all_devices_cannot_share_runs_on_one_though_all_are_faster() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.1, on_one_s=1.0)
    machine.end(0, 1)
    assert machine.start(1, 0, batch=30) == 1


# The end of a budget


def test_the_last_job_gets_the_free_devices_when_they_are_worth_it() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.5, on_one_s=1.0)  # four devices are twice as fast as one
    machine.end(0, 1)
    assert machine.start(9, 4, left=1) == 4


def test_two_last_jobs_share_the_devices_when_it_is_worth_it() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.25 / 0.9, on_one_s=1.0)
    machine.end(0, 1)
    assert [machine.start(9, 3, left=2), machine.start(9, 4, left=1)] == [2, 2]
    assert not machine.resources.has_room


def test_the_last_job_gets_one_device_when_more_are_hardly_faster() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=1.0 / 1.1, on_one_s=1.0)
    machine.end(0, 1)
    assert machine.start(9, 4, left=1) == 1


def test_the_last_job_gets_only_devices_that_are_free() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.25 / 0.9, on_one_s=1.0)
    assert machine.start(8, 0) == 1
    assert machine.start(9, 4, left=1) == 2  # fold 1 of the first trial still runs, too


def test_the_last_job_gets_no_devices_that_cannot_share_its_batch() -> None:
    machine = Machine(define())
    machine.measure(on_all_s=0.25 / 0.9, on_one_s=1.0)
    assert machine.start(9, 4, left=1) == 1  # three are free, and 32 samples are not shared by three
    machine.end(9, 4)
    assert machine.start(9, 4, left=1, batch=36) == 3


def test_free_devices_stay_free_while_nothing_was_measured() -> None:
    machine = Machine(define())
    assert machine.start(9, 4, left=1) == 1
