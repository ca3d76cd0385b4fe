"""Ctrl-C, SIGTERM and SIGHUP as a KeyboardInterrupt that is not lost.

Python forgets an exception that a signal's handler raises while a destructor or a callback of a weak reference runs,
of which SQLAlchemy has many: it prints "Exception ignored" and goes on. So a handler also leaves word here.
"""

from __future__ import annotations

import threading
from types import FrameType

_UNHEARD = threading.Event()


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler. Raises KeyboardInterrupt."""
    _UNHEARD.set()
    raise KeyboardInterrupt


def hear() -> None:
    """Say that the interruption was heard, so that it is not raised once more."""
    _UNHEARD.clear()


def raise_lost() -> None:
    """Raise the KeyboardInterrupt that nobody heard, if there is one. Main thread."""
    if _UNHEARD.is_set():
        _UNHEARD.clear()
        raise KeyboardInterrupt
