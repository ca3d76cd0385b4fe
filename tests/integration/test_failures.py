"""What becomes of trials whose jobs fail: real processes, real limits, real signals."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import ranks_under, run_hpo, start_hpo
from tests.integration.test_side_by_side import ended_well
from tests.integration.test_sweep import mlflow_runs, outcomes, trials, wait_until
from training.run_dir import RunDir

OWN = ("--set", "task=own:Task")
ONE_BY_ONE = "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n"
TASK = """\
import os, resource, signal
import torch
from training.tasks.image_classification import ImageClassification

class Task(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        model.fold = config.cross_validation.fold
        model.register_forward_pre_hook(before)
        return model

def before(model, inputs):
    samples = len(next(iter(inputs[0].values())))
    {step}
"""
SIXTY_FOUR_MIB_EACH = (
    "used = int(open('/proc/self/statm').read().split()[0]) * 4096; "
    "resource.setrlimit(resource.RLIMIT_AS, (used + 800 * 2**20, -1)); "
    "model.fold == 1 and model.training and torch.empty(samples, 2**24)"
)
"""Of address space, of which 800 MiB are left: room for 12 samples. No page of it is touched."""
TOUCHED = "model.fold == 1 and model.training and torch.ones(samples, 2**24)"
"""As much of the memory itself."""


def furnish(workplace: Path, step: str, recovery: str, *, mlflow: bool = False) -> None:
    Path("own.py").write_text(TASK.format(step=step))
    study = workplace / "studies" / "digits.yaml"
    off = "" if mlflow else 'mlflow: "off"\n'
    study.write_text(study.read_text() + ONE_BY_ONE + off + f"recovery: {{{recovery}}}\n")


@pytest.mark.parametrize(
    ("step", "what"),
    [
        pytest.param(SIXTY_FOUR_MIB_EACH, "refused", id="refused", marks=pytest.mark.quick),
        pytest.param(TOUCHED, "killed", id="killed"),
    ],
)
def test_out_of_memory_trains_the_same_batch_in_smaller_parts_and_keeps_what_was_done(
    request: pytest.FixtureRequest, workplace: Path, step: str, what: str
) -> None:
    """Of the machine, by a limit that the kernel keeps: 32 and 16 samples at a time do not fit, 8 do."""
    furnish(workplace, step, "backoff: 0.2s")
    sweep = ("sweep", "--study", "digits", "--trials", "1")
    run_hpo(*sweep, "--set", "output.root=undisturbed")
    first = request.getfixturevalue("small_memory").enter if what == "killed" else ""
    said = run_hpo(*sweep, *OWN, first=first).stderr
    assert ("the kernel killed 1 of its processes" in said) == (what == "killed")
    for micro_batch, retry in ((16, 1), (8, 2)):
        assert re.search(rf"FAIL  oom: .*; queued again with micro-batches of {micro_batch} \({retry} of 2", said), said
    assert "trial 2 goes on where trial 1 was: 1 of 2 folds are done" in said
    first, second, third = trials()
    assert [trial.state.name for trial in (first, second, third)] == ["FAIL", "FAIL", "COMPLETE"]
    assert first.params == third.params, "the sampler sees what it chose"
    kept, halved = (RunDir(workplace / f"runs/digits/trial_0002/fold_{fold}").load_config() for fold in range(2))
    plans = [config.batch_plan(1) for config in (kept, halved)]
    assert [(plan.micro_batch_size, plan.num_micro_batches) for plan in plans] == [(32, 1), (8, 4)]
    whole = [RunDir(path).load_result() for path in sorted(workplace.glob("undisturbed/digits/trial_0000/fold_*"))]
    parts = [RunDir(path).load_result() for path in sorted(workplace.glob("runs/digits/trial_0002/fold_*"))]
    losses = [[outcome.metrics["loss"] for outcome in each if outcome] for each in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 2


def test_what_never_fits_is_told_as_infeasible_without_a_score(workplace: Path) -> None:
    step = "model.fold == 1 and (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory'))"
    furnish(workplace, step, "max_retries: 1, backoff: 0.2s")
    said = run_hpo("sweep", "--study", "digits", "--trials", "1", *OWN, status=1).stderr
    assert "PRUNED  oom: OutOfMemoryError: CUDA out of memory; after 1 of 1 retries; told as infeasible" in said
    first, last = trials()
    assert (first.state.name, last.state.name, last.value) == ("FAIL", "PRUNED", None)
    assert last.constraints == {"oom": 1.0}
    assert last.intermediate_values, "its first fold had reported scores"
    assert "1 violate a constraint" in run_hpo("status", "--study", "digits").stdout


def test_a_failure_may_stop_the_sweep_and_a_mistake_is_shown_where_the_rank_made_it(workplace: Path) -> None:
    furnish(workplace, "raise LookupError('not here')", "on_failure: {user_code: stop}")
    said = run_hpo("sweep", "--study", "digits", "--trials", "5", *OWN, status=1).stderr
    assert len(trials()) == 1
    assert "\n  on rank 0:\n  Traceback (most recent call last):\n" in said
    assert re.search(r'\n    File ".*own.py", line \d+, in before\n', said), said
    assert "recovery.on_failure.user_code is stop, so the sweep ended" in said


# Preemption


TWO_RANKS = ("--set", "distributed.strategy=ddp", "--set", "distributed.devices=2")


def begin(workplace: Path, epochs: int, *, mlflow: bool = False) -> subprocess.Popen[str]:
    """A sweep of one trial of two ranks, whose first fold has left a checkpoint."""
    furnish(workplace, "model.training and __import__('time').sleep(0.02)", "preemption_notice: 20s", mlflow=mlflow)
    train = ("--set", f"training.epochs={epochs}", *TWO_RANKS, *OWN)
    process = start_hpo("sweep", "--study", "digits", "--trials", "1", *train)
    wait_until(has_checkpoint, process)
    return process


def has_checkpoint() -> bool:
    return RunDir(Path("runs/digits/trial_0000/fold_0")).last_epoch() > 0


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_scheduler_that_signals_everything_loses_no_epoch_and_no_retry(
    workplace: Path, signal_number: signal.Signals
) -> None:
    """As it does to all processes of a job step: the sweep, agents, ranks and the fork server, two ranks each."""
    process = begin(workplace, 10_000, mlflow=True)
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in {*everything, *ranks_under(workplace)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "trial 0  FAIL  told to leave; queued again" in err
    assert "told to leave: trial 0 parked and queued again" in err and "Traceback" not in err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]
    assert "hpo:retries" not in trials()[1].user_attrs and "hpo:losses" not in trials()[1].user_attrs
    [left] = [outcome for outcome in outcomes(workplace) if outcome.stopped]
    assert left.paused and has_checkpoint()
    assert {run.info.status for run in mlflow_runs("digits")} <= {"KILLED", "FAILED", "FINISHED"}


def test_a_second_signal_ends_at_once_what_does_not_leave(workplace: Path) -> None:
    furnish(workplace, "__import__('time').sleep(100)", "preemption_notice: 100s")
    process = start_hpo("sweep", "--study", "digits", "--trials", "1", *OWN)
    wait_until(lambda: Path("runs/digits/trial_0000/fold_0/metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    wait_until(lambda: "told to leave: folds have 100 s" in process.stderr.readline(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]


@pytest.mark.nightly
def test_what_does_not_leave_in_time_is_killed(workplace: Path) -> None:
    furnish(workplace, "__import__('time').sleep(100)", "preemption_notice: 1s")
    process = start_hpo("sweep", "--study", "digits", "--trials", "1", *OWN)
    wait_until(lambda: Path("runs/digits/trial_0000/fold_0/metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]


def test_a_rank_that_is_told_to_leave_takes_its_job_along_and_the_trial_goes_on_at_once(workplace: Path) -> None:
    process = begin(workplace, 60)
    ranks_under(workplace)[-1].send_signal(signal.SIGTERM)
    said = ended_well(process)
    assert "FAIL  preemption: a rank was told to leave by SIGTERM, SIGUSR1 or SIGUSR2; queued again" in said
    assert "trial 1 goes on where trial 0 was: 0 of 2 folds are done, 1 begun" in said
    first, second = trials()
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert "hpo:retries" not in second.user_attrs
    assert len(outcomes(workplace)) == 2
