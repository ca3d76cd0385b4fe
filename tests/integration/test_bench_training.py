"""What compares the native loop with one written by hand still runs, and both still do the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import CHECKOUT

pytestmark = pytest.mark.nightly


def test_the_loop_by_hand_and_the_native_one_do_the_same_work() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, CHECKOUT / "scripts" / "bench_training", "0", "mlp"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    header, row = done.stderr.splitlines()
    assert header.split()[0] == "model" and row.split()[0] == "mlp"
    found = json.loads(done.stdout)
    (mlp,) = found.pop("models")
    assert found == {"device": "cpu", "threads": 1}
    assert mlp["weights_differ_by"] == 0.0
    assert mlp["rounds"] == 3
    assert mlp.keys() == {"model", "rounds", "hand_ms", "native_ms", "ratio", "cpu_ratio", "weights_differ_by"}
    assert mlp["ratio"] > 0 and mlp["cpu_ratio"] > 0 and len(mlp["hand_ms"]) == len(mlp["native_ms"]) == 3
