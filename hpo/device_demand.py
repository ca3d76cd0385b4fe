"""What a job asks for when it leases devices, and which of the free ones it takes. A device goes by its lock's name.

`strange` are devices in use by processes that lease nothing: not free, and no lease that ends will make them so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """All of `listed`, and any others of `pool` until they are `count`."""

    pool: tuple[str, ...]
    listed: tuple[str, ...] = ()
    count: int
    is_modest: bool = False
    """Does without strange ones, as long as one is left."""

    def needed(self, strange: Collection[str]) -> int:
        """How many devices it takes."""
        left = sum(device not in strange for device in self.pool)
        return min(self.count, max(1, left)) if self.is_modest else self.count

    def claim(self, free: Collection[str], strange: Collection[str]) -> tuple[str, ...]:
        """What it takes of `free`, in its own order; less than needed where there is no more."""
        listed = [device for device in self.listed if device in free]
        others = [device for device in self.pool if device in free and device not in self.listed]
        return (*listed, *others[: self.needed(strange) - len(self.listed)])

    def is_met(self, free: Collection[str], strange: Collection[str]) -> bool:
        """Whether `free` is enough."""
        return len(self.claim(free, strange)) == self.needed(strange)

    def waits_for_strangers(self, strange: Collection[str]) -> bool:
        """Whether it would wait even if all leases ended."""
        return not self.is_met([device for device in self.pool if device not in strange], strange)

    def to_line(self) -> str:
        """For `from_line`, on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Demand:
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "pool": tuple(values["pool"]), "listed": tuple(values["listed"])})


def left_by(earlier: Iterable[Demand], free: Collection[str], strange: Collection[str]) -> set[str]:
    """Of `free`, what those who waited before leave over: nothing that is part of what they will get, as leases end."""
    left = set(free)
    for demand in earlier:
        if not demand.waits_for_strangers(strange):
            left -= set(demand.claim(left, strange))
    return left
