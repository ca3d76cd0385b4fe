"""Files that appear whole or not at all, whenever a process or the machine dies. Torch-free."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from training.full_disk import naming


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: afterwards it holds the old bytes or the new ones, even after a power cut."""
    with replacing(path) as file:
        file.write(data)


def write_once(path: Path, data: bytes) -> bool:
    """Make `path`, with `data`, unless it is there. Returns whether this made it."""
    with temporary(path) as (name, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here, as on a mounted Google Drive: the first one wins but for a race
            if path.exists():
                return False
            os.replace(name, path)
    return True


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
