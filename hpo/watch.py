"""Hearing that a file was put into a folder, without looking again and again (Linux; elsewhere nothing is heard)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_IN_MOVED_TO = 0x80
"""Whole files appear by a rename (but for `next` and `error.json`, which come by a link)."""


class Watch:
    """`descriptor` is readable once a file was renamed into `folder`, until ``clear``; None where it cannot be had."""

    def __init__(self, folder: Path) -> None:
        self.descriptor: int | None = None
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(AttributeError):  # no inotify here
            descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor >= 0:  # or this user watches too much already
                libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_MOVED_TO)
                self.descriptor = descriptor

    def clear(self) -> None:
        """Be ready for the next one."""
        if self.descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self.descriptor, 65536)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
