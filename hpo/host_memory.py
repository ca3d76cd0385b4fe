"""How many processes the kernel has killed because a machine, or a container on it, had no memory left.

It says nothing to the process that it kills, and to its parent no more than SIGKILL. But it counts: for the cgroup of
the process (version 2: ``memory.events``, version 1: ``memory.oom_control``), else for the machine (``/proc/vmstat``).
Each has a line ``oom_kill 3`` since Linux 4.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def oom_kills(root: Path = ROOT) -> int | None:
    """Processes so killed, in our cgroup if that is known, since it was made. None where nothing counts them."""
    counts = (_count(path) for path in _counters(root))
    return next((count for count in counts if count is not None), None)


def _counters(root: Path) -> Iterator[Path]:
    """The files that may have the count, the closest first."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, kinds, path = line.split(":", 2)
        if hierarchy == "0":
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in kinds.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        yield mount / path.lstrip("/") / name
        yield mount / name  # in a container that sees its own cgroup as the root
    yield root / "proc/vmstat"


def _count(path: Path) -> int | None:
    found = (line.split() for line in _text(path).splitlines())
    return next((int(words[1]) for words in found if len(words) == 2 and words[0] == "oom_kill"), None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
