"""What measures launches and sweeps still runs, and what is warm beats what is cold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.conftest import CHECKOUT

pytestmark = pytest.mark.nightly


def bench(name: str, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    script = [sys.executable, str(CHECKOUT / "scripts" / name), *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_job_starts_many_times_faster_by_the_fork_server_than_by_torchrun() -> None:
    found = bench("bench_launch", "1")
    seconds = ("fork_server_s", "torchrun_s", "single_process_s", "concurrent_per_job_s")
    assert found.keys() == {"rounds", "ratio", "pss_mib", *seconds}
    assert all(found[key] > 0 for key in seconds)
    assert found["ratio"] > 5  # 25 and more on an idle machine
    assert all(found["pss_mib"][process] > 0 for process in ("server", "agent", "rank"))


def test_a_sweep_is_compared_with_a_bare_loop_of_the_same_trainings() -> None:
    found = bench("bench_sweep", "1", "1")
    kinds = ("bare", "one_slot", "two_slots", "ddp", "torchrun")
    assert {f"{kind}_s" for kind in kinds} <= found.keys()
    assert found["torchrun_to_ddp_ratio"] > 1
    assert found["one_slot_ratio"] > 0 and found["two_slots_ratio"] > 0
