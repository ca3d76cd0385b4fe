"""What measures the orchestrator's own cost still runs; processes that share a budget evaluate each trial once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import CHECKOUT


@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
def test_four_processes_share_a_budget_exactly_and_the_cost_of_a_trial_is_told(
    storage: str, request: pytest.FixtureRequest
) -> None:
    if storage == "postgresql":
        request.getfixturevalue("postgres_url")  # or a skip
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    arguments = ["--storages", storage, "--sizes", "10", "30", "--workers", "4", "--trials", "3", "--shared", "21"]
    script = [sys.executable, CHECKOUT / "scripts" / "bench_orchestrator", *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"sampler", storage} and found["sampler"] == "tpe"
    costs = found[storage]
    assert costs.keys() == {"10", "30", "ratio_30_to_10", "workers_4"}
    for size in ("10", "30"):
        for key in ("trial_ms", "sampler_ms"):
            low, middle, high = costs[size][key]
            assert 0 < low <= middle <= high
    workers = costs["workers_4"]
    assert workers.pop("trials_per_s") > 0
    assert workers == {"trials": 21, "lost": 0, "duplicates": 0, "errors": []}
