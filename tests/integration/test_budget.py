"""Sweeps that end by their budget: real jobs, a clock of the test's own where time matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest

from hpo.deadline import ENDING_S
from hpo.definition import load_definition
from hpo.events import Event, JobFinished, JobProgress, Notice
from hpo.orchestrator import Sweep
from hpo.storage import default_url, open_storage
from hpo.study import open_study
from hpo.tally import DEVICE_SECONDS, tally_of
from tests.integration.conftest import ranks_under, run_hpo
from tests.integration.test_sweep import trials, write_task
from training.run_dir import Event as Told
from training.run_dir import RunDir

ONE_AT_A_TIME = "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n"
DEADLINE_S = 1000.0


def limit(workplace: Path, budget: str, *, lr: str = "{float: [1e-3, 1e-1], log: true}") -> None:
    """Have the study end by `budget`, one job at a time."""
    study = workplace / "studies" / "digits.yaml"
    text = study.read_text().replace("budget: {trials: 2}", f"budget: {budget}")
    study.write_text(text.replace("{float: [1e-3, 1e-1], log: true}", lr) + ONE_AT_A_TIME + 'mlflow: "off"\n')


def fold(trial: int, number: int) -> RunDir:
    return RunDir(Path(f"runs/digits/trial_{trial:04d}/fold_{number}"))


@dataclass
class Heard:
    """A sweep in this process that calls `act` with each event, and a clock that stands still but for `act`."""

    act: Callable[[Heard, Event], None]
    now: float = 0.0
    notices: list[str] = field(default_factory=list)

    def sweep(self, *settings: str) -> Sweep:
        definition = load_definition("digits", settings=settings)
        study = open_study(definition, open_storage(default_url(definition.root)))
        return Sweep(definition, study, self.listen, clock=lambda: self.now)

    def listen(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.message)
        self.act(self, event)


# No trial is begun


@pytest.mark.parametrize(
    ("budget", "num_trials", "says"),
    [
        ("{trials: 9, device_hours: 1e-9}", 1, "budget.device_hours of 1e-09 is spent: "),
        ("{trials: 9, target: 0.0}", 1, "budget.target of 0 is reached: "),
        (
            "{trials: 9, patience: 2}",
            3,
            "budget.patience is over: 2 trials in a row brought no significant improvement",
        ),
    ],
)
def test_a_limit_ends_the_sweep_with_every_trial_complete_and_a_larger_one_continues(
    workplace: Path, budget: str, num_trials: int, says: str
) -> None:
    limit(workplace, budget, lr="{choice: [1e-2]}")  # so that all trials have the same scores
    done = run_hpo("sweep", "--study", "digits", "--json")
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * num_trials
    assert says in done.stderr
    assert json.loads(done.stdout)["number"] == 0
    assert "started" not in run_hpo("sweep", "--study", "digits").stderr
    study = workplace / "studies" / "digits.yaml"
    study.write_text(study.read_text().replace(budget, f"{{trials: {num_trials + 1}}}"))
    run_hpo("sweep", "--study", "digits")
    assert len(trials()) == num_trials + 1


@pytest.mark.nightly
def test_what_was_spent_and_what_is_left_is_in_the_status_and_what_is_to_come_in_the_plan(workplace: Path) -> None:
    limit(workplace, "{trials: 3, device_hours: 5, target: 1.5, patience: 9}")
    before = run_hpo("plan", "--study", "digits", "--json")
    assert (
        "nothing was measured yet" in before.stderr and "memory is not planned: there is no GPU here" in before.stderr
    )
    cost = json.loads(before.stdout)["price"]
    assert (cost["jobs"], cost["epochs"], cost["max_samples"], cost["measured"]) == (6, [2, 2], 300, None)
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    [told] = trials()
    [status] = json.loads(run_hpo("status", "--json").stdout)
    assert status["device_hours"] * 3600 == pytest.approx(told.user_attrs[DEVICE_SECONDS])
    assert {name: left["left"] for name, left in status["left"].items()} == {
        "trials": 0,
        "device_hours": pytest.approx(5 - status["device_hours"]),
        "patience": 9,
        "target": pytest.approx(1.5 - status["best_value"]),
    }
    assert "of 5 device-hours, 9 of 9 trials of patience, " in run_hpo("status").stdout
    text = workplace / "studies" / "digits.yaml"
    text.write_text(text.read_text().replace("study: digits", "study: another"))
    measured = json.loads(run_hpo("plan", "--study", "digits", "--json").stdout)["price"]["measured"]
    assert (measured["study"], measured["num_folds"]) == ("digits", 2)
    assert measured["device_hours"] == pytest.approx(3 * status["device_hours"], rel=1e-3)
    assert "2 folds of study digits" in run_hpo("plan", "--study", "digits").stdout


# What counts


def test_attempts_that_fail_or_are_interrupted_are_paid_for(workplace: Path) -> None:
    limit(workplace, "{trials: 2}")

    def interrupt(heard: Heard, event: Event) -> None:
        if isinstance(event, JobProgress) and event.label.trial == 1:
            raise KeyboardInterrupt

    write_task("self.steps == 2 and 1 / int('/trial_0000/' not in os.environ['HPO_JOB_ID'])")
    sweep = Heard(interrupt).sweep("task=own:Task")
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    failed, interrupted, queued = trials()
    assert (failed.state.name, failed.user_attrs["hpo:failure"]["kind"]) == ("FAIL", "user_code")
    assert interrupted.user_attrs["hpo:interrupted"]
    spent = [trial.user_attrs[DEVICE_SECONDS] for trial in (failed, interrupted)]
    assert min(spent) > 0
    assert DEVICE_SECONDS not in queued.user_attrs
    study = optuna.load_study(study_name="digits", storage="sqlite:///runs/studies.db")
    assert tally_of(study).device_seconds() == pytest.approx(sum(spent))


# The deadline


def test_before_the_deadline_folds_that_run_are_parked_and_the_next_sweep_goes_on_from_their_checkpoints(
    workplace: Path,
) -> None:
    limit(workplace, f"{{trials: 9, deadline: {DEADLINE_S:g}}}")

    def pass_time(heard: Heard, event: Event) -> None:
        if isinstance(event, JobProgress) and event.record.event is Told.EVALUATE:
            heard.now = DEADLINE_S - ENDING_S - 1.0

    heard = Heard(pass_time)
    sweep = heard.sweep("training.epochs=4000")
    sweep.run()
    assert sweep.parked == [0]
    parked, queued = trials()
    assert (parked.state.name, queued.state.name) == ("FAIL", "WAITING")
    assert queued.system_attrs["fixed_params"] == parked.params
    assert fold(0, 0).last_epoch() > 0
    outcome = fold(0, 0).load_result()
    assert outcome is not None and outcome.stopped and outcome.epochs < 4000
    assert "budget.deadline of 1000 s: trial 0 parked and queued again; the same command continues the study" in (
        heard.notices
    )
    assert not ranks_under(workplace)
    saved, began = fold(0, 0).last_epoch(), list[int]()

    def end_when_it_goes_on(heard: Heard, event: Event) -> None:
        if isinstance(event, JobProgress) and event.record.event is Told.START:
            began.append(event.record.epoch)
            raise KeyboardInterrupt

    again = Heard(end_when_it_goes_on)
    with pytest.raises(KeyboardInterrupt):
        again.sweep("training.epochs=4000").run()
    assert began == [saved]
    assert any(text.startswith("trial 1 goes on where trial 0 was: 0 of 2 folds are done, ") for text in again.notices)


def test_no_fold_is_started_that_would_not_end_before_the_deadline(workplace: Path) -> None:
    limit(workplace, f"{{trials: 9, deadline: {DEADLINE_S:g}}}")

    def pass_time(heard: Heard, event: Event) -> None:
        if isinstance(event, JobFinished):
            heard.now = DEADLINE_S - ENDING_S - 1e-6  # no fold is as fast as that

    sweep = Heard(pass_time).sweep()
    sweep.run()
    assert sweep.parked == [0]
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]
    assert fold(0, 0).load_result() is not None
    assert not fold(0, 1).path.exists()


@pytest.mark.nightly
def test_a_fold_that_does_not_hear_that_it_is_asked_is_ended_at_the_deadline(workplace: Path) -> None:
    limit(workplace, f"{{trials: 9, deadline: {DEADLINE_S:g}}}")
    write_task("import time; time.sleep(600)")

    def pass_time(heard: Heard, event: Event) -> None:
        if isinstance(event, JobProgress):
            heard.now = DEADLINE_S

    sweep = Heard(pass_time).sweep("task=own:Task")
    sweep.run()
    assert sweep.parked == [0]
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]
    assert not ranks_under(workplace)


def test_a_deadline_that_leaves_no_time_ends_well_and_says_so(workplace: Path) -> None:
    done = run_hpo("sweep", "--study", "digits", "--deadline", "1s", "--json")
    assert "budget.deadline of 1 s leaves no time for another trial; the same command continues" in done.stderr
    assert json.loads(done.stdout) is None
    assert trials() == []
    assert len(json.loads(run_hpo("sweep", "--study", "digits", "--json").stdout)["fold_scores"]) == 2
