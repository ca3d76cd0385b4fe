"""docs/own-training.md works as written, alone and under torchrun; and what a script of two ranks may do wrong."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import CHECKOUT
from tests.integration.test_strategies import TOLERANCE, TWO_RANKS
from training.run_dir import JOB_ID, RunDir


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code of the page, in a folder where its task can be imported."""
    monkeypatch.chdir(tmp_path)
    Path("my_tasks.py").write_text(python_blocks("own-task.md")[0])
    return python_blocks("own-training.md")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / page).read_text(), re.DOTALL)


def run(script: str, *launcher: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    Path("train.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", JOB_ID: "own"}
    command = [sys.executable, *launcher, "train.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr[-4000:]
    return done


def test_the_documented_script_gives_the_same_metrics_alone_and_on_two_ranks(blocks: list[str]) -> None:
    [alone] = run(blocks[0]).stdout.splitlines()
    both = run(blocks[0], *TWO_RANKS).stdout.splitlines()
    assert len(both) == 2
    expected = ast.literal_eval(alone)
    assert expected["r2"] > 0.3
    for line in both:
        assert ast.literal_eval(line) == pytest.approx(expected, rel=TOLERANCE)
    outcome = RunDir(Path("runs/mine")).load_result()
    assert outcome is not None
    assert outcome.world_size == 2
    assert Path("runs/mine/model/model.pt").is_file()


def test_the_documented_callback_ends_lightning_on_both_ranks(blocks: list[str]) -> None:
    lines = run(blocks[0] + blocks[1], *TWO_RANKS).stdout.splitlines()
    assert lines[2:] == ["2", "2"]  # of five epochs


SHARDED = """
import os

fsdp = TrainingCoordinator(strategy="fsdp", devices=2, precision=32)
torch.manual_seed(0)
print(fsdp.train(Regression(inputs=10, hidden=32), task.build(None), task, config, run_dir="runs/fsdp").metrics)
torch.manual_seed(int(os.environ["RANK"]))
fsdp.train(Regression(inputs=10, hidden=32), task.build(None), task, config)
"""


def test_a_script_shards_one_model_and_is_refused_two(blocks: list[str]) -> None:
    failed = run(blocks[0] + SHARDED, *TWO_RANKS, status=1)
    ddp, *others = (ast.literal_eval(line) for line in failed.stdout.splitlines())
    assert len(others) == 3
    assert all(metrics == pytest.approx(ddp, rel=TOLERANCE) for metrics in others)
    whole = Path("runs/fsdp/model/model.pt").stat().st_size
    assert whole == Path("runs/mine/model/model.pt").stat().st_size
    assert "model: the ranks have built different weights; call torch.manual_seed" in failed.stderr
