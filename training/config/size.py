"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"B": 1, **{f"{letter}B": 1000**n for n, letter in enumerate("KMGT", start=1)}}
_UNITS |= {f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", start=1)}


def parse_size(text: object) -> int:
    """Bytes of ``24GB`` (10^9), ``24GiB`` (2^30) or ``512MB``. Raises ValueError, also for a number without a unit."""
    if isinstance(text, (int, float)) and not isinstance(text, bool) and 0 < text < math.inf:
        raise ValueError(f"{text} has no unit; write {text}GB, or {text}B for bytes")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text) if isinstance(text, str) else None
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a size; write 24GB, 24GiB or 512MB")
    return int(float(match[1]) * _UNITS[match[2]])


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: f"{size}B"),  # as it is read back
    WithJsonSchema({"type": "size such as `24GB`"}),
]
