"""Memory predicted without a GPU is what a training then takes on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.devices import detect_hardware
from tests.gpu.memory_cases import CASES

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def run(what: str, name: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.memory_cases", what, name],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    num_bytes: int = json.loads(done.stdout.splitlines()[-1])["bytes"]
    return num_bytes


@pytest.mark.skipif(not detect_hardware().gpus, reason="no GPU")
@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_within_ten_percent(name: str) -> None:
    predicted = run("predict", name, CUDA_VISIBLE_DEVICES="")
    measured = run("measure", name)
    print(f"{name}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert predicted == pytest.approx(measured, rel=0.1)
