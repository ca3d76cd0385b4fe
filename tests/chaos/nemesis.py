"""Sends signals to processes of a sweep at random moments, to each kind as often, and counts what it hit."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

KINDS = ("orchestrator", "fork server", "agent", "rank 0", "rank 1")
PATIENCE_S = 60.0
"""A kind that does not show up for so long is passed over."""


class Nemesis:
    """For one sweep, whose run directories are in `folder`."""

    def __init__(self, folder: Path, *, seed: int, kinds: Sequence[str] = KINDS, number: int = signal.SIGKILL) -> None:
        """It sends the signal `number` to processes of these `kinds`."""
        self._folder, self._random = folder, random.Random(seed)
        self._kinds, self._number = kinds, number
        self.hits: Counter[str] = Counter()

    def wait_s(self, mean_s: float) -> float:
        """Until the next fault."""
        return self._random.expovariate(1 / mean_s)

    def strike(self, orchestrator: int) -> None:
        """Send the signal to a process of the kind that was hit least, at a random moment of the next second.

        The sweep may end meanwhile; then nothing is hit.
        """
        least = min(self.hits[kind] for kind in self._kinds)
        kind = self._random.choice([kind for kind in self._kinds if self.hits[kind] == least])
        deadline = time.monotonic() + PATIENCE_S
        while (target := self._find(kind, orchestrator)) is None:
            if time.monotonic() > deadline or not psutil.pid_exists(orchestrator):
                return
            time.sleep(0.02)
        time.sleep(self._random.random() ** 2)
        with contextlib.suppress(psutil.Error):
            target.send_signal(self._number)
            self.hits[kind] += 1

    def _find(self, kind: str, orchestrator: int) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(orchestrator)
            if parent.status() == psutil.STATUS_ZOMBIE:
                return None
            if kind == "orchestrator":
                return parent
            for process in parent.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if self._kind(process.cmdline()) == kind:
                        return process
        return None

    def _kind(self, command: list[str]) -> str | None:
        text = " ".join(command)
        if str(self._folder) not in text:
            return "fork server" if "training.fork_server" in text else None
        if "rank 0" in text or "rank 1" in text:
            return text[text.index("rank ") :][:6]
        return "agent"
