"""Whether the holder of a lease has fallen silent, by our own clock.

A lease runs out by the database's clock, which may be set while a sweep runs: forwards, and every lease has run out;
backwards, and none ever does. So nobody is taken for lost whose lease still changes, as in Kubernetes' leader election
(client-go, ``LeaderElector``: "observedTime").
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpo.ledger import LEASE_S, Held

SILENCE_S = 15.0
"""How long a lease that has run out is watched; whoever lives renews it three times meanwhile."""


class Silence:
    """The leases that this process has seen, and since when each has been the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is one that nobody sets, in seconds."""
        self._clock = clock
        self._seen: dict[int, tuple[float, float]] = {}
        """By trial id: when its lease runs out, and when that was first seen."""
        self.doubtful: set[int] = set()
        """Numbers of the trials whose lease has run out, and was not watched for long enough."""

    def is_lost(self, held: Held) -> bool:
        """Whether its process is known to be dead, or has not renewed its lease for as long as it was seen to."""
        expires, since = self._seen.get(held.trial_id, (held.expires, self._clock()))
        since = since if expires == held.expires else self._clock()
        self._seen[held.trial_id] = held.expires, since
        enough_s = SILENCE_S if held.is_expired else LEASE_S + SILENCE_S
        is_lost = held.holder.is_dead or self._clock() - since >= enough_s
        (self.doubtful.add if held.is_expired and not is_lost else self.doubtful.discard)(held.number)
        return is_lost
