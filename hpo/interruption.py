"""Ctrl-C as a KeyboardInterrupt that is not lost, and the signals by which schedulers tell us to leave soon.

Python forgets an exception that a signal's handler raises while a destructor or a callback of a weak reference runs,
of which SQLAlchemy has many: it prints "Exception ignored" and goes on. So a handler also leaves word here.

A signal of a scheduler's interrupts in the same way, unless somebody listens for its notice (a sweep, which then has
its jobs leave in good order); the second one always does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NOTICES = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that schedulers send."""
_UNHEARD = threading.Event()
_LISTENING, _NOTICED, _UNHEARD_NOTICE = threading.Event(), threading.Event(), threading.Event()


class Preempted(KeyboardInterrupt):
    """We were told to leave, and all jobs have."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler. Raises KeyboardInterrupt."""
    _UNHEARD.set()
    raise KeyboardInterrupt


def notice(number: int, frame: FrameType | None) -> None:
    """The handler of NOTICES. Raises KeyboardInterrupt if nobody listens, or has heard one before."""
    if not _LISTENING.is_set() or _NOTICED.is_set():
        interrupt(number, frame)
    _NOTICED.set()
    _UNHEARD_NOTICE.set()


@contextmanager
def listening() -> Iterator[None]:
    """Inside the block the first notice is heard by `has_notice`. Main thread."""
    _NOTICED.clear()
    _UNHEARD_NOTICE.clear()
    _LISTENING.set()
    try:
        yield
    finally:
        _LISTENING.clear()


def has_notice() -> bool:
    """Whether there is one that was not taken yet."""
    return _UNHEARD_NOTICE.is_set()


def take_notice() -> bool:
    """The same, and it is taken."""
    is_new = _UNHEARD_NOTICE.is_set()
    _UNHEARD_NOTICE.clear()
    return is_new


def hear() -> None:
    """Say that the interruption was heard, so that it is not raised once more."""
    _UNHEARD.clear()


def raise_lost() -> None:
    """Raise the KeyboardInterrupt that nobody heard, if there is one. Main thread."""
    if _UNHEARD.is_set():
        _UNHEARD.clear()
        raise KeyboardInterrupt
