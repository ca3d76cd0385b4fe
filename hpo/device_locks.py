"""The locks that processes of this machine and user hold on its devices, and the line of those who wait for one.

A lock is a file under flock, so the kernel lets go of it when its holder dies, kill -9 included; what stands in the
file says who holds it. Everything but letting go happens inside ``choosing``: whoever is in there sees files and locks
that nobody changes, except that some come free.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hpo.errors import DeviceError
from hpo.masking import masked

FOLDER_VARIABLE = "HPO_LEASES"
CHOOSING = "select.lock"
CHOOSING_TIMEOUT_S = 0.05
"""Choosing takes a few milliseconds; who does not get in tries again, and looks around in between."""
COMMAND_LENGTH = 80
"""Of a holder's command line, as much as is shown."""


def lock_folder() -> Path:
    """The folder of the locks, which exists and is this user's alone to write in. Raises DeviceError."""
    folder = _named_folder()
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        wrong = _distrusted(folder.lstat())
    except OSError as error:
        wrong = f"cannot be used ({error.strerror})"
    if wrong:
        advice = f"set {FOLDER_VARIABLE} to a folder of your own"
        raise DeviceError(f"{folder}, where the devices of this machine are locked, {wrong}; {advice}")
    return folder


def _named_folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"hpo-devices-{os.getuid()}"


def _distrusted(found: os.stat_result) -> str | None:
    """Why a folder is not one to keep locks in: somebody else could take them away."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.getuid():
        return f"belongs to another user ({found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None


@contextlib.contextmanager
def choosing(folder: Path) -> Iterator[bool]:
    """Whether this process may look and take now; then no other does."""
    lock = try_lock(folder / CHOOSING, CHOOSING_TIMEOUT_S)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def try_lock(path: Path, timeout_s: float = 0.0) -> FileLock | None:
    """The lock on `path`, held by its caller, or None when somebody has it."""
    lock = FileLock(path, mode=0o600, thread_local=False)  # let go of by whichever thread ends the lease
    try:
        lock.acquire(timeout=timeout_s, poll_interval=0.005)
    except Timeout:
        return None
    return lock


def lock_path(folder: Path, device: str) -> Path:
    return folder / f"{device}.lock"


def sign(path: Path) -> None:
    """Say in a file that this process has locked it."""
    path.write_text(f"{this_process()}\n")


def holder(path: Path) -> str:
    """Who has locked `path`."""
    return path.read_text(errors="replace").strip() or "another process"


def locked(folder: Path) -> dict[str, str] | None:
    """Who has locked each device that is; None while another process chooses."""
    with choosing(folder) as is_my_turn:
        if not is_my_turn:
            return None
        devices = (path for path in sorted(folder.glob("*.lock")) if path.name != CHOOSING)
        return {path.stem: holder(path) for path in devices if not _is_free(path)}


def _is_free(path: Path) -> bool:
    lock = try_lock(path)
    if lock is not None:
        lock.release()
    return lock is not None


def this_process() -> str:
    """Its pid and what it runs, on one line, such as ``pid 4711 (hpo sweep bert_cv)``."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"pid {os.getpid()} ({' '.join(masked(command).split())[:COMMAND_LENGTH]})"


# The line of those who wait


@contextlib.contextmanager
def place_in_line(folder: Path, demand: str) -> Iterator[Path]:
    """A place behind all who wait already, for as long as the block and this process last; `demand` is on one line."""
    path = folder / f"{time.monotonic_ns():020d}-{os.getpid()}.waiting"  # nobody sets this clock; a machine has one
    lock = try_lock(path)
    assert lock is not None, "the name of a place is new"
    try:
        path.write_text(f"{this_process()}\n{demand}\n")
        yield path
    finally:
        lock.release()


def waiting(folder: Path, before: Path | None) -> Iterator[tuple[str, str]]:
    """Who waits, and the demand of each; the longest first, and only those `before` a place of one's own."""
    for path in sorted(folder.glob("*.waiting")):
        if before is not None and path >= before:
            return
        if (left_behind := try_lock(path)) is not None:
            path.unlink()
            left_behind.release()
        else:
            who, _, demand = path.read_text(errors="replace").partition("\n")
            yield who, demand.strip()
