"""Calling jobs off, from another thread."""

from __future__ import annotations

import threading


class JobCancelled(Exception):
    """The job was called off; nothing is left of it."""


class Cancellation:
    """Whether jobs are to end without a result."""

    def __init__(self) -> None:
        self._requested, self._urgent = threading.Event(), threading.Event()

    def request(self, *, at_once: bool = False) -> None:
        """Have the jobs end in good order, or be killed `at_once`."""
        if at_once:
            self._urgent.set()
        self._requested.set()

    def is_requested(self) -> bool:
        """Whether the jobs are to end."""
        return self._requested.is_set()

    def is_urgent(self) -> bool:
        """Whether to wait no longer for those that were asked to."""
        return self._urgent.is_set()


NEVER = Cancellation()
"""Of jobs that nobody calls off."""
