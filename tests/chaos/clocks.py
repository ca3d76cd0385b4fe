"""Sweeps whose time of day is set while they run, and workers whose time of day is wrong."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from hpo.silence import SILENCE_S
from tests.chaos.sweeps import LEASE_S, OWN_PROCESSES, SHORT_LEASES, Setting

SOURCE = Path(__file__).with_name("clock.c")
HOUR_S, JUMP_S = 3600, 600
FOUND_WITHIN_S = LEASE_S + SILENCE_S + 5.0
"""A worker that was killed where nobody sees its processes; also while no lease seems to run out."""


class NoCompilerError(Exception):
    """There is no C compiler on this machine."""


class Clock:
    """The time of day of what runs within it. The clock that measures durations stays right, as on real machines."""

    def __init__(self, folder: Path, ahead_s: int = 0) -> None:
        """Its files are in `folder`, which other users may read. Raises NoCompilerError."""
        if (compiler := shutil.which("cc")) is None:
            raise NoCompilerError("cc is not on PATH")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self._library, self._file = folder / "clock.so", folder / "ahead_s"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self._library, SOURCE], check=True)
        self._file.touch()
        self.set(ahead_s)

    def set(self, ahead_s: int) -> None:
        """Seconds before the right time, for processes that run already too."""
        with self._file.open("r+b") as file:
            file.write(ahead_s.to_bytes(8, sys.byteorder, signed=True))

    @property
    def within(self) -> list[str]:
        """A command line that runs another one by it."""
        return ["env", f"LD_PRELOAD={self._library}", f"TEST_CLOCK={self._file}"]


@dataclass(frozen=True, kw_only=True)
class Jumps:
    """What a sweep came to whose clock was set again and again."""

    seconds: float
    jumps: int
    found_after_s: float
    """From the death of a worker until nobody held its trial any more."""
    violations: list[str]


def with_clocks_set(setting: Setting, clock: Clock, *, num_jumps: int, mean_s: float = 2.5, seed: int = 1) -> Jumps:
    """Sweep by `clock`, which is set that often, beside workers an hour ahead and behind, one of which is killed."""
    began = time.monotonic()
    processes = _started(setting, clock)
    victim = setting.start("worker", first=SHORT_LEASES, within=[*clock.within, *OWN_PROCESSES])
    while (lost := setting.history().held_elsewhere()) is None and victim.poll() is None:
        time.sleep(0.1)
    victim.kill()
    victim.wait()
    died, chance, found_after_s = time.monotonic(), random.Random(seed), math.inf
    due = list(itertools.accumulate(chance.expovariate(1 / mean_s) for _ in range(num_jumps)))
    while any(process.poll() is None for process in processes):
        passed_s = time.monotonic() - died
        if due and passed_s > due[0]:
            clock.set(chance.choice((-JUMP_S, 0, JUMP_S)))
            due.pop(0)
        if setting.history().held_elsewhere() is None:
            found_after_s = min(found_after_s, passed_s)
        time.sleep(0.5)
    statuses = [process.wait() for process in processes]
    wrong = [f"{len(due)} of {num_jumps} faults were too late"] if due else []
    wrong += [] if statuses == [0] * len(processes) else [f"exit statuses {statuses}"]
    wrong += [] if found_after_s <= FOUND_WITHIN_S else [f"trial {lost} was held {found_after_s:.1f} s longer"]
    wrong += _taken_over(setting, lost)
    return Jumps(seconds=time.monotonic() - began, jumps=num_jumps, found_after_s=found_after_s, violations=wrong)


def _started(setting: Setting, clock: Clock) -> list[subprocess.Popen[bytes]]:
    """A sweep, and when it has begun a worker an hour ahead and one an hour behind."""
    setting.write()
    others = [Clock(setting.folder / name, ahead_s) for name, ahead_s in (("ahead", HOUR_S), ("behind", -HOUR_S))]
    sweep = setting.start(first=SHORT_LEASES, within=clock.within)
    while not [*setting.run_dirs.glob("trial_0000/fold_*")] and sweep.poll() is None:
        time.sleep(0.1)
    return [sweep, *(setting.start("worker", first=SHORT_LEASES, within=each.within) for each in others)]


def _taken_over(setting: Setting, lost: int | None) -> list[str]:
    """Only the trial of the dead one, of which another made the successor."""
    history = setting.history()
    wrong = history.violations(num_trials=setting.trials, num_folds=setting.folds)
    ended = [trial.number for trial in history.trials if trial.state is not TrialState.COMPLETE]
    history.close()
    return wrong + ([] if ended == [lost] else [f"trials {ended} were ended, {lost} alone was lost"])
