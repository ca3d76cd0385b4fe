"""However many ranks read a prepared data set, the machine holds it in memory once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import CHECKOUT

pytestmark = pytest.mark.nightly

NUM_RANKS = 4
SIZE = 64 * 2**20
"""Bytes of the data set."""
RANK = f"""\
import re, sys
from pathlib import Path
import numpy as np
import torch
from training.config import JobConfig
from training.data import PreparedData, build_loaders, prepare_once
from training.distributed import RunContext

def own_bytes():  # Private_Dirty would count pages of the file, too, that are not on disk yet
    return 1024 * int(re.search(r"Anonymous: +([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1])

def build(folder):
    labels = np.arange({SIZE} // 1024) % 2
    return PreparedData(arrays={{"x": np.arange({SIZE} // 4, dtype=np.float32).reshape(-1, 256), "labels": labels}})

torch.set_num_threads(1)
config = JobConfig.model_validate({{"output": {{"root": sys.argv[1]}}, "distributed": {{"accelerator": "cpu"}}}})
data = prepare_once(config, {{"a": 1}}, build)
loaders = build_loaders(data, config, RunContext(device=torch.device("cpu")), lambda batch: batch)
before, num_read = own_bytes(), 0
for batch in loaders.train:
    num_read += len(batch["x"])
for batch, counts in loaders.evaluation():
    num_read += len(batch["x"])
print(num_read, own_bytes() - before, flush=True)
sys.stdin.read()
"""


@contextmanager
def rank(root: Path) -> Iterator[tuple[int, int, int]]:
    """A process that has read all the data, until the block ends: its id, the samples it read, the bytes it grew by."""
    command = [sys.executable, "-c", RANK, str(root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=CHECKOUT, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            num_read, growth = map(int, process.stdout.readline().split())
            yield process.pid, num_read, growth
        finally:
            process.kill()


def mapped_share(pid: int, path: Path) -> int:
    """Bytes of the mapped file that are this process's part, where a page of n processes is 1/n each's."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)
    shares = (re.search(r"^Pss: +(\d+) kB", part, re.MULTILINE) for part in parts if str(path) in part)
    return sum(1024 * int(share[1]) for share in shares if share)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_ranks_that_read_all_of_a_data_set_hold_it_once(tmp_path: Path) -> None:
    with rank(tmp_path):  # makes the file; what it has of it by making it is gone with it
        pass
    [file] = tmp_path.glob("cache/data-*/x.npy")
    with ExitStack() as running:
        ranks = [running.enter_context(rank(tmp_path)) for _ in range(NUM_RANKS)]
        shares = [mapped_share(pid, file) for pid, _, _ in ranks]
    assert all(num_read >= 0.99 * SIZE / 1024 for _, num_read, _ in ranks)  # a last batch may be dropped
    assert 0.95 * SIZE <= sum(shares) <= 1.2 * SIZE
    assert max(growth for _, _, growth in ranks) < SIZE / 8
