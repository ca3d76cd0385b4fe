"""Faults injected into real sweeps, in short; scripts/chaos has the long form."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.away import mlflow_server, without_mlflow
from tests.chaos.clocks import Clock, NoCompilerError, with_clocks_set
from tests.chaos.gateway import gateway
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import HERE, NoNetworkError, network
from tests.chaos.orphans import DOOMED, orphan
from tests.chaos.points import dies_before_some
from tests.chaos.soak import soak
from tests.chaos.sweeps import NUM_FOLDS, Setting, cut_off, side_by_side, storm
from tests.postgres import PostgresMissingError, running_server

FAULTS = 5
"""One of each kind."""


@pytest.mark.quick
def test_a_sweep_that_is_killed_again_and_again_comes_to_what_it_would_have(tmp_path: Path) -> None:
    undisturbed = Setting(folder=tmp_path / "undisturbed", trials=2)
    undisturbed.run()
    setting = replace(undisturbed, folder=tmp_path / "killed")
    found = storm(setting, Nemesis(setting.run_dirs, seed=1), num_faults=FAULTS, mean_s=0.5)
    assert sum(found.hits.values()) == FAULTS and not found.survivors
    history = setting.history()
    assert history.violations(num_trials=2, num_folds=NUM_FOLDS) == []
    assert history.scores() == undisturbed.history().scores()
    history.close()


@pytest.mark.nightly
def test_whatever_process_of_a_job_is_killed_its_loaders_and_daemons_end(tmp_path: Path) -> None:
    found = orphan(tmp_path, num_jobs=len(DOOMED), seed=1)
    assert (sum(found.killed.values()), found.survivors) == (len(DOOMED), [])


@pytest.mark.nightly
def test_a_sweep_that_dies_before_any_durable_step_comes_to_what_it_would_have(tmp_path: Path) -> None:
    setting = Setting(folder=tmp_path, trials=1, epochs=1, num_ranks=1)
    died, wrong = dies_before_some(setting, num_faults=3, seed=1)
    assert len(died) >= 2 and wrong == [], died


@pytest.mark.nightly
def test_a_database_that_restarts_under_a_sweep_and_a_worker_is_only_a_pause(tmp_path: Path) -> None:
    try:
        with running_server() as server:
            setting = Setting(folder=tmp_path, trials=8, num_ranks=1, storage=server.url)

            def restart(_: int) -> None:
                time.sleep(1.0)
                server.stop()
                time.sleep(1.0)
                server.start()

            assert side_by_side(setting, workers=1, disturb=restart, num_faults=3) == [0, 0]
            history = setting.history()
            assert history.violations(num_trials=8, num_folds=NUM_FOLDS) == []
            history.close()
    except PostgresMissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.nightly
def test_a_worker_that_was_cut_off_from_the_database_loses_its_trial_and_doubles_nothing(tmp_path: Path) -> None:
    try:
        with network() as cable, running_server(HERE) as server:
            setting = Setting(folder=tmp_path, trials=9, num_ranks=1, epochs=60, storage=server.url)
            assert cut_off(setting, cable) == []
            history = setting.history()
            assert history.violations(num_trials=9, num_folds=NUM_FOLDS) == []
            history.close()
    except (NoNetworkError, PostgresMissingError) as missing:
        pytest.skip(str(missing))


@pytest.mark.nightly
def test_mlflow_has_all_of_a_sweep_after_its_server_was_killed(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "runs") as server:
        setting = Setting(folder=tmp_path, trials=3, epochs=8, num_ranks=1, mlflow=server.url)
        assert without_mlflow(setting, server, num_kills=1, seed=4).violations == []  # soon, and not for long


@pytest.mark.nightly
def test_mlflow_has_all_of_a_sweep_whose_requests_were_late_and_some_answered_by_an_error(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "runs") as server, gateway(server.url, delay_s=0.05, errors=0.2) as url:
        setting = Setting(folder=tmp_path, trials=3, num_ranks=1, mlflow=url)
        assert without_mlflow(setting, server, num_kills=0).violations == []


@pytest.mark.nightly
def test_clocks_that_are_wrong_and_set_end_no_trial_and_hide_no_dead_worker(tmp_path: Path) -> None:
    try:
        clock = Clock(tmp_path / "time")
    except NoCompilerError as missing:
        pytest.skip(str(missing))
    setting = Setting(folder=tmp_path / "clocks", trials=10, epochs=100, num_ranks=1)
    assert with_clocks_set(setting, clock, num_jumps=5).violations == []


def test_nothing_that_a_sweep_holds_grows_with_its_trials(tmp_path: Path) -> None:
    setting = Setting(folder=tmp_path, trials=12, folds=2, epochs=1, max_samples=200, num_ranks=1)
    assert soak(setting, every_s=0.2, checks_memory=False).violations == []
