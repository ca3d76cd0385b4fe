"""A network of its own for some processes, which can be cut off from ours and joined again (Linux, as root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

HERE, THERE = "10.213.77.1", "10.213.77.2"
"""Addresses of the two ends of the cable."""


class NoNetworkError(Exception):
    """This machine does not let us make one."""


class Network:
    """The other end of a cable."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def within(self) -> list[str]:
        """A command line that runs another one there."""
        return ["ip", "netns", "exec", self._name]

    def cut(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        _ip("link", "set", self._name, "down")

    def join(self) -> None:
        """All goes through again."""
        _ip("link", "set", self._name, "up")


@contextmanager
def network() -> Iterator[Network]:
    """Raises NoNetworkError."""
    name = f"hpo{uuid.uuid4().hex[:8]}"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NoNetworkError("a network namespace needs root, and the program ip")
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{HERE}/30", "dev", name)
        _ip("link", "set", name, "up")
        for inside in (
            ["addr", "add", f"{THERE}/30", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            _ip("-n", name, *inside)
        yield Network(name)
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise NoNetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
