"""On what kind of file system a path is, as Linux tells it."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs\w*|glusterfs|orangefs"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|rclone|gcsfuse|drive\w*|blobfuse2?))"
)
"""Kinds on which locks are not to be relied on, or memory is not shared between machines."""
MOUNTS = Path("/proc/self/mounts")


def network_kind(path: Path) -> str | None:
    """The kind of network file system that holds `path`, there or to be; None for a local one, or where unknown."""
    try:
        kind = kind_of(path.resolve(), MOUNTS.read_text(errors="replace"))
    except OSError:  # not Linux
        return None
    return kind if NETWORK.fullmatch(kind) else None


def kind_of(path: Path, mounts: str) -> str:
    """The kind of file system of an absolute `path`, by the lines of /proc/mounts; "" when none has it."""
    found, longest = "", -1
    for line in mounts.splitlines():
        _, where, kind, *_ = line.split(" ")
        folder = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
        if path.is_relative_to(folder) and len(folder.parts) >= longest:  # the last one covers the others
            found, longest = kind, len(folder.parts)
    return found


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())
