"""Jobs of which one process is killed while they are likely to leave others: loaders nothing wakes, and daemons."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from tests.chaos.history import processes_of
from tests.chaos.nemesis import Nemesis
from tests.chaos.sweeps import CHECKOUT

GONE_WITHIN_S = 10.0
DOOMED = (
    *(("fork_server", kind) for kind in ("orchestrator", "agent", "rank 0", "rank 1")),
    *(("torchrun", kind) for kind in ("orchestrator", "agent")),
)
"""How each job is started, and what of it is killed. Without the fork server itself it goes on."""
NUM_RANKS, NUM_LOADERS = 2, 4
NUM_DAEMONS = NUM_RANKS * NUM_LOADERS
TASK = """\
import os, subprocess
from training.tasks.image_classification import ImageClassification

class Clogged(ImageClassification):
    def collate(self, batch):
        subprocess.Popen(["sleep", "7653"], start_new_session=True)
        os.write(os.pipe()[1], bytes(1 << 20))  # more than a pipe holds, and nobody reads
        return batch
"""
CONFIG = f"""\
task: clogged:Clogged
data: {{name: digits, max_samples: 300, num_workers: {NUM_LOADERS}}}
model: {{architecture: mlp, hidden_size: 16, num_hidden_layers: 1}}
distributed: {{strategy: ddp, devices: {NUM_RANKS}, accelerator: cpu, threads_per_rank: 1}}
"""


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """What became of the jobs."""

    killed: dict[str, int]
    slowest_s: float
    """From the kill until nothing of the job lived."""
    survivors: list[str]
    """What lived on after GONE_WITHIN_S."""


def orphan(folder: Path, *, num_jobs: int, seed: int) -> Orphans:
    """Start jobs one after the other, kill a process of each, and see when the last one of it is gone."""
    (folder / "clogged.py").write_text(TASK)
    (folder / "job.yaml").write_text(CONFIG)
    killed, survivors, slowest_s = Counter[str](), list[str](), 0.0
    for number, (launcher, kind) in zip(range(num_jobs), cycle(DOOMED), strict=False):
        command = _train(folder, launcher)
        while len(_daemons(folder)) < NUM_DAEMONS and command.poll() is None:
            time.sleep(0.1)
        nemesis = Nemesis(folder / "runs", seed=seed + number, kinds=[kind])
        nemesis.strike(command.pid)
        killed += nemesis.hits
        began = time.monotonic()
        while (left := processes_of(folder)) and time.monotonic() < began + GONE_WITHIN_S:
            time.sleep(0.05)
        slowest_s = max(slowest_s, time.monotonic() - began)
        survivors += [f"{process.pid}: {process.name()}" for process in left]
        for process in left:
            process.kill()
        command.wait()
    return Orphans(killed=dict(killed), slowest_s=slowest_s, survivors=survivors)


def _train(folder: Path, launcher: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", "train", "--config", "job.yaml", "--launcher", launcher],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )


def _daemons(folder: Path) -> list[int]:
    return [process.pid for process in processes_of(folder) if process.name() == "sleep"]
