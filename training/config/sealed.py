"""A configuration as it was run, in a file that is known for another one once it is changed. Torch-free.

    # crc32: 5d41402a of all below; remove this line where that is changed on purpose
    task: image_classification
    ...

The line comes first, so that a file that was cut off has it, too. One without it is taken as it is: a person has
written it, or an earlier version.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config.source import Layer, dump_yaml, read_layer
from training.errors import ConfigError, Problem

MARK = b"# crc32: "


def dump_sealed(values: Mapping[str, Any]) -> bytes:
    """`values` as such a file."""
    data = dump_yaml(values).encode()
    return b"%s%s of all below; remove this line where that is changed on purpose\n%s" % (MARK, _checksum(data), data)


def read_sealed(path: Path) -> Layer:
    """As ``read_layer``. Raises ConfigError also where the file is not what was written."""
    with contextlib.suppress(OSError):  # reading it says so
        require_whole(path.read_bytes(), name=str(path))
    return read_layer(path)


def require_whole(data: bytes, *, name: str) -> None:
    """Raises ConfigError, which calls the file `name`, where its first line has another checksum than the rest."""
    first, _, below = data.partition(b"\n")
    is_sealed = first.startswith(MARK) or MARK.startswith(data)  # or was, and is cut off in it
    if is_sealed and not first.startswith(MARK + _checksum(below)):
        message = (
            "is not what was written: it has not the checksum in its first line; bring back a copy, or remove that line"
            " if the file was changed on purpose"
        )
        raise ConfigError([Problem(place=name, message=message)])


def _checksum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)
