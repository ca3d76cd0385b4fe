"""A process that leases CPU cores of a machine with three.

leasing.py hold                  all of them, until it is killed
leasing.py wait                  the same, and says that it waits
leasing.py race FOLDER ROUNDS    two, again and again; prints how often another process had one of them as well
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from hpo import leases
from hpo.devices import Hardware
from hpo.leases import lease
from training.config import DistributedConfig

THREE_CORES = Hardware(gpus=(), cores=3)
leases.TOLD_AFTER_S = 0.0
os.sched_getaffinity = lambda pid: {0, 1, 2}


def hold() -> None:
    with lease(DistributedConfig(), THREE_CORES, on_wait=say, is_cancelled=lambda: False):
        say("leased")
        time.sleep(600)


def race(folder: Path, rounds: int) -> int:
    leases.POLL_INTERVAL_S = 0.001
    config, overlaps = DistributedConfig(devices=2, threads_per_rank=1), 0
    for _ in range(rounds):
        with lease(config, THREE_CORES, on_wait=lambda text: None, is_cancelled=lambda: False) as placement:
            marks = [folder / str(core) for core in placement.cores]
            overlaps += sum(not mark_alone(mark) for mark in marks) + (len(marks) != 2)
            time.sleep(0.001)
            for mark in marks:
                mark.unlink(missing_ok=True)
    return overlaps


def mark_alone(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "race":
        say(str(race(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        hold()
