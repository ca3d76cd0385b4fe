"""Ranks that hang: found by what they do not tell, ended, and their trials tried again. All of it real processes."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import ranks_under, run_hpo, start_hpo
from tests.integration.test_side_by_side import OWN, ended_well, hold_steps_until
from tests.integration.test_sweep import mlflow_runs, trials, wait_for

TWO_RANKS = ("--set", "distributed.strategy=ddp", "--set", "distributed.devices=2")
ONE_RANK = ("--set", "distributed.strategy=none")


def give_up(workplace: Path, limits: str) -> None:
    study = workplace / "studies" / "digits.yaml"
    study.write_text(study.read_text() + f"recovery: {{{limits}}}\n")


@pytest.mark.parametrize(
    "strategy", [pytest.param(ONE_RANK, id="alone"), pytest.param(TWO_RANKS, id="ddp", marks=pytest.mark.quick)]
)
def test_a_rank_that_was_stopped_is_found_and_its_trial_goes_on(workplace: Path, strategy: tuple[str, str]) -> None:
    give_up(workplace, "no_progress_timeout: 15s")
    process = start_hpo("sweep", "--study", "digits", "--trials", "1", "--set", "training.epochs=300", *strategy)
    wait_for(workplace / "runs/digits/trial_0000/fold_0/metrics.jsonl", process)
    stopped = ranks_under(workplace)[-1]
    stopped.send_signal(signal.SIGSTOP)
    said = ended_well(process)
    assert re.search(r"trial 0  FAIL  hang: fold . made no progress for .*; queued again \(1 of 2 retries\)", said), (
        said
    )
    assert "trial 1 goes on where trial 0 was" in said
    assert [trial.state.name for trial in trials()] == ["FAIL", "COMPLETE"]
    assert not stopped.is_running() or stopped.status() == "zombie"
    assert not ranks_under(workplace)
    assert not [run.data.tags for run in mlflow_runs("digits") if run.info.status == "RUNNING"]


def test_a_trial_that_always_hangs_fails_after_its_retries(workplace: Path) -> None:
    give_up(workplace, "no_progress_timeout: 1s, max_retries: 1")
    hold_steps_until("False")
    refused = run_hpo("sweep", "--study", "digits", "--trials", "1", *OWN, status=1)
    assert len(re.findall(r"FAIL  hang: fold . made no progress for", refused.stderr)) == 2, refused.stderr
    first, second = trials()
    assert (first.state.name, second.state.name, second.user_attrs["hpo:retries"]) == ("FAIL", "FAIL", 1)
    assert second.user_attrs["hpo:failure"]["kind"] == "hang"
    assert "RUNNING" not in run_hpo("status", "--study", "digits").stdout


def test_a_fold_that_takes_too_long_fails_its_trial(workplace: Path) -> None:
    give_up(workplace, "fold_timeout: 2s")
    process = start_hpo("sweep", "--study", "digits", "--trials", "1", "--set", "training.epochs=100000", *ONE_RANK)
    _, err = process.communicate(timeout=200)
    assert re.search(r"trial 0  FAIL  timeout: fold . was ended after .* \(recovery.fold_timeout\)", err), err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL"]
