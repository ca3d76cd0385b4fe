"""A disk that takes no more: what it looks like from inside a program, and what to say of it. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
BROKEN = {errno.EIO, errno.EROFS}
"""What comes over a disk beside being full: it cannot be read or written, or has become read-only."""
SHARED_MEMORY = Path("/dev/shm")
PROBE_BYTES = 1 << 16
"""More than what a rank leaves of a failure."""
_SAYS_FULL = re.compile(
    "|".join(
        [
            *(re.escape(os.strerror(each)) for each in FULL),  # safetensors, and others not written in Python
            r"PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos",  # torch.save
            r"Not enough free space to write|\d+ requested and \d+ written",  # numpy
            "database or disk is full",  # SQLite
        ]
    )
)
_SAYS_SHARED_MEMORY = re.compile(r"shared memory object|shared memory\(shm\)|out of shared memory|signal: Bus error")


def is_disk_error(error: BaseException) -> bool:
    """Whether `error` or what led to it is that a disk is full or broken."""
    return any(_reason(each) for each in _chain(error))


def is_shared_memory_error(error: BaseException) -> bool:
    """Whether it is that a DataLoader's workers found no room in /dev/shm."""
    return any(isinstance(each, RuntimeError) and _SAYS_SHARED_MEMORY.search(str(each)) for each in _chain(error))


def explain(error: BaseException, folder: Path) -> str:
    """A line for a disk error: which disk, what is free there, what to do. Of `folder`, unless `error` says where."""
    errors = [*_chain(error)]
    named = (each.filename for each in errors if isinstance(each, OSError) and _reason(each))
    place = next((Path(name).absolute().parent for name in named if isinstance(name, str)), folder)
    return describe(place, next((reason for each in errors if (reason := _reason(each))), str(error)))


def describe(folder: Path, reason: str) -> str:
    """The same, of a `reason` in words."""
    advice = "make room" if _SAYS_FULL.search(reason) else "see to that disk"
    return f"{folder} cannot be written: {reason}; {_room(folder)}; {advice}"


def explain_shared_memory() -> str:
    """What to do when it is full."""
    return (
        f"the DataLoader's workers found no room in {SHARED_MEMORY} ({_room(SHARED_MEMORY)});"
        " --set data.num_workers=0, or give it more (docker run --shm-size)"
    )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have a disk error say where it is: the system names a file only when it is opened."""
    try:
        yield
    except OSError as error:
        if _reason(error):
            error.filename = error.filename or str(path)
        raise


def probe(folder: Path) -> None:
    """Write a little, and leave nothing. Raises OSError where that cannot be done."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what led to it, and what a sharded checkpoint failed of on each rank."""
    each: BaseException | None = error
    while each is not None:
        yield each
        if type(each).__name__ == "CheckpointException":
            yield from (failure for failure, _ in getattr(each, "failures", {}).values())
        each = each.__cause__ or each.__context__


def _reason(error: BaseException) -> str:
    """What a disk error says; "" for another."""
    if isinstance(error, OSError) and error.errno in FULL | BROKEN:
        return os.strerror(error.errno)
    if not _SAYS_FULL.search(text := str(error)):
        return ""
    return next((words for each in FULL if (words := os.strerror(each)) in text), os.strerror(errno.ENOSPC))


def _room(folder: Path) -> str:
    try:
        stats = os.statvfs(next(each for each in (folder, *folder.parents) if each.exists()))
    except OSError as error:
        return f"its free space is unknown ({error.strerror})"
    if stats.f_files and not stats.f_favail:
        return "it can hold no more files"
    return f"{_size(stats.f_bavail * stats.f_frsize)} of {_size(stats.f_blocks * stats.f_frsize)} are free now"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
