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
from training.job_processes import JOB_ID
from training.run_dir import RunDir

pytestmark = pytest.mark.nightly


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


def printed_metrics(done: subprocess.CompletedProcess[str]) -> list[dict[str, float]]:
    """Ranks share the output, so their lines may run into each other."""
    return [ast.literal_eval(text) for text in re.findall(r"{[^}]*}", done.stdout)]


def test_the_documented_script_gives_the_same_metrics_alone_and_on_two_ranks(blocks: list[str]) -> None:
    [alone] = printed_metrics(run(blocks[0]))
    both = printed_metrics(run(blocks[0], *TWO_RANKS))
    assert alone["r2"] > 0.3
    assert both == [pytest.approx(alone, rel=TOLERANCE)] * 2
    outcome = RunDir(Path("runs/mine")).load_result()
    assert outcome is not None
    assert outcome.world_size == 2
    assert Path("runs/mine/model/model.pt").is_file()


def test_the_documented_callback_ends_lightning_on_both_ranks(blocks: list[str]) -> None:
    done = run(blocks[0] + blocks[1], *TWO_RANKS)
    assert re.findall(r"epochs=(\d+)", done.stdout) == ["2", "2"]  # of five


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
    ddp, *others = printed_metrics(failed)
    assert others == [pytest.approx(ddp, rel=TOLERANCE)] * 3
    whole = Path("runs/fsdp/model/model.pt").stat().st_size
    assert whole == Path("runs/mine/model/model.pt").stat().st_size
    assert "model: the ranks have built different weights; call torch.manual_seed" in failed.stderr
