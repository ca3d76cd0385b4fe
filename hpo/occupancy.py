"""One process at a time trains in a run directory outside a search: a lock on the folder, which ends with its holder.

In a search a lease says who trains, also on several machines. A file system that cannot lock a folder goes without.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo.errors import HpoError


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Have `folder`, which exists, for as long as the block lasts. Raises HpoError when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HpoError(
            f"{folder}: another process trains there; wait for its end, or begin another training"
        ) from error
    except OSError:  # NFS
        pass
