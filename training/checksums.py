"""Checkpoints carry their checksum in their name, so one that was cut off or damaged is known for it. Torch-free.

    epoch_0003-5d41402a.pt                after three epochs; a file: the CRC-32 of its bytes
    epoch_0003-7c4a8d09                   a folder: the CRC-32 of the lines "NAME CHECKSUM" of its files, by name
    epoch_0003_step_00000617-ad0234c5.pt  within the fourth epoch, after 617 optimizer steps from the start

A rename gives name and content at once: there is no moment at which one is there without the other.
"""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?(?:-([0-9a-f]{8}))?(?:\.pt)?")


class Position(NamedTuple):
    """Where in a training a checkpoint was taken; a later one is greater."""

    epoch: int
    """Finished epochs."""
    step: int = 0
    """Optimizer steps from the start; 0 at the end of an epoch."""

    def __str__(self) -> str:
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.step:08d}" if self.step else "")


def position_of(checkpoint: Path) -> Position | None:
    """Where this checkpoint was taken; None for a file that is none."""
    name = _NAME.fullmatch(checkpoint.name)
    return Position(int(name[1]), int(name[2] or 0)) if name else None


def is_whole(checkpoint: Path) -> bool:
    """Whether it is what its name says. One of an earlier version, whose name says nothing, is taken as it is."""
    name = _NAME.fullmatch(checkpoint.name)
    try:
        return name is not None and name[3] in (None, checksum(checkpoint))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False  # the disk cannot read it


def checksum(path: Path) -> str:
    """Of a file or a folder of files."""
    return checksum_of_all(checksums(path.iterdir())) if path.is_dir() else _checksum_of_file(path)


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """Of each of these files, by its name. In threads: computing a checksum lets others run."""
    files = [*files]
    with ThreadPoolExecutor() as threads:
        return dict(zip((file.name for file in files), threads.map(_checksum_of_file, files), strict=True))


def checksum_of_all(sums: Mapping[str, str]) -> str:
    """Of a folder, by those of its files."""
    return _hex(zlib.crc32("".join(f"{name} {sums[name]}\n" for name in sorted(sums)).encode()))


def _checksum_of_file(path: Path) -> str:
    total = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            total = zlib.crc32(block, total)
    return _hex(total)


def _hex(checksum: int) -> str:
    return f"{checksum:08x}"
