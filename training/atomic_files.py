"""Files that appear whole or not at all, whenever a process or the machine dies. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from training.full_disk import naming

LOCKED_WITHIN_S = 1.0
"""A new file has its lock by then."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: afterwards it holds the old bytes or the new ones, even after a power cut."""
    with replacing(path) as file:
        file.write(data)


def write_once(path: Path, data: bytes) -> bool:
    """Make `path`, with `data`, unless it is there. Returns whether this made it."""
    try:
        with making(path) as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def making(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends without an error. Raises FileExistsError, and leaves what
    is there, if another was faster."""
    with temporary(path) as (name, file):
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links here, as on a mounted Google Drive: the first one wins but for a race
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(name, path)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path` while `making` it: a process that lives has it locked."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with contextlib.suppress(OSError), left.open("r+b") as file:  # locked, gone by now, or without locks here
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > LOCKED_WITHIN_S:
                left.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path`, atomically and durably, when the block ends without an error."""
    with temporary(path) as (name, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(name, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in this folder on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(path: Path) -> None:
    """Remove a file, or a folder, which is never seen half removed."""
    if not path.is_dir():
        return path.unlink(missing_ok=True)
    shutil.rmtree(path.replace(path.with_name(f".{path.name}.tmp")))


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """A file beside `path` and its name, to write and then give another; removed unless it was. Errors name `path`."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            yield name, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
