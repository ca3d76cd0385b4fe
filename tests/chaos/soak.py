"""One long sweep whose processes are looked at again and again: what grows with the number of trials is a leak."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.chaos.history import History
from tests.chaos.sweeps import Setting

MOMENTS = {"20 %": (0.1, 0.3), "60 %": (0.5, 0.7), "100 %": (0.9, 1.01)}
"""From and up to which share of the trials each is measured: the median of what was seen there."""
MOST_GROWTH = 2
"""Of a count, from 20 % of the trials to the end; jobs come and go meanwhile."""
MOST_RSS_MB = 20.0
"""Of each process's memory, per 1,000 trials."""
COUNTS = ("fds", "threads", "zombies", "shm", "tmp", "fork_server_fds")
OWN_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh")
"""Another /dev/shm for one command, so that it is known whose the entries are; takes root."""

Sample = tuple[int, dict[str, float]]
"""Trials begun so far, and what was measured then, by name."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What a long sweep took at each moment, by name of what was measured."""

    measured: dict[str, dict[str, float]]
    growth: dict[str, float]
    """From 20 % of the trials to the end; of rss_mb per 1,000 trials."""
    first_fifth_s: float
    """Seconds between the ends of two trials (median)."""
    last_fifth_s: float
    violations: list[str]


def soak(setting: Setting, *, every_s: float, checks_memory: bool = True) -> Soak:
    """Sweep to the end, with a look at its processes `every_s` seconds; /dev/shm is left out without root."""
    setting.write()
    temporary = setting.folder / "tmp"
    temporary.mkdir()
    within = ["env", f"TMPDIR={temporary}", *(OWN_SHM if os.geteuid() == 0 else ())]
    process = setting.start(within=within)
    samples = _samples(process, setting.run_dirs, temporary, every_s)
    measured = {moment: _at(samples, setting.trials, *share) for moment, share in MOMENTS.items()}
    growth = _growth(measured, setting.trials)
    history = setting.history()
    first, last = _pace(history)
    wrong = history.violations(num_trials=setting.trials, num_folds=setting.folds)
    history.close()
    wrong += [] if process.returncode == 0 else [f"exit status {process.returncode}"]
    wrong += [] if growth else ["nothing was measured: too few trials, or looks too far apart"]
    wrong += [f"{name} grew by {growth[name]:g}" for name in COUNTS if growth.get(name, 0) > MOST_GROWTH]
    memory = [name for name in growth if checks_memory and name not in COUNTS and growth[name] > MOST_RSS_MB]
    wrong += [f"{name} grew by {growth[name]:.1f} per 1,000 trials" for name in memory]
    return Soak(measured=measured, growth=growth, first_fifth_s=first, last_fifth_s=last, violations=wrong)


def _samples(process: subprocess.Popen[bytes], run_dirs: Path, temporary: Path, every_s: float) -> list[Sample]:
    samples = list[Sample]()
    while True:
        try:
            process.wait(every_s)
            return samples
        except subprocess.TimeoutExpired:
            num_begun = len([*run_dirs.glob("trial_*")])
        try:
            samples.append((num_begun, _look(psutil.Process(process.pid), temporary)))
        except (psutil.Error, OSError):  # it ends just now
            continue


def _look(sweep: psutil.Process, temporary: Path) -> dict[str, float]:
    children = sweep.children(recursive=True)
    zombies = [each for each in children if _is_zombie(each)]
    seen = {
        "rss_mb": sweep.memory_info().rss / 2**20,
        "fds": sweep.num_fds(),
        "threads": sweep.num_threads(),
        "zombies": len(zombies),
        "tmp": len([*temporary.iterdir()]),
    }
    if os.geteuid() == 0:
        seen["shm"] = len(os.listdir(f"/proc/{sweep.pid}/root/dev/shm"))
    for server in children:
        if "training.fork_server" in _command(server) and server.ppid() == sweep.pid:
            seen |= {"fork_server_rss_mb": server.memory_info().rss / 2**20, "fork_server_fds": server.num_fds()}
    return seen


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _at(samples: list[Sample], trials: int, since: float, until: float) -> dict[str, float]:
    looks = [look for num_begun, look in samples if since * trials <= num_begun < until * trials]
    names = {name for look in looks for name in look}
    return {name: round(median(look[name] for look in looks if name in look), 1) for name in sorted(names)}


def _growth(measured: dict[str, dict[str, float]], trials: int) -> dict[str, float]:
    first, last = measured["20 %"], measured["100 %"]
    grown = {name: last[name] - first[name] for name in first.keys() & last.keys()}
    return {name: by if name in COUNTS else round(by * 1000 / (0.8 * trials), 1) for name, by in sorted(grown.items())}


def _pace(history: History) -> tuple[float, float]:
    ends: list[Any] = sorted(trial.datetime_complete for trial in history.trials if trial.datetime_complete)
    gaps = [(after - before).total_seconds() for before, after in zip(ends, ends[1:], strict=False)]
    if not gaps:
        return 0.0, 0.0
    fifth = max(1, len(gaps) // 5)
    return round(median(gaps[:fifth]), 3), round(median(gaps[-fifth:]), 3)
