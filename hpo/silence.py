"""Whether the holder of a lease has fallen silent, by our own clock.

A lease runs out by the database's clock, which may be set while a sweep runs: forwards, and every lease has run out;
backwards, and none ever does. So nobody is taken for lost whose lease still changes, as in Kubernetes' leader election
(client-go, ``LeaderElector``: "observedTime").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.ledger import LEASE_S, Held

SILENCE_S = 15.0
"""How long a lease that has run out is watched; whoever lives renews it three times meanwhile."""
GAP_S = 10.0
"""Between two looks, after which the watch begins anew: we were suspended, or nobody could reach the database."""


@dataclass(frozen=True, slots=True)
class _Watched:
    expires: float
    since: float
    """When this was first seen, by our clock."""
    is_renewed: bool
    """Whether it was another before: whoever holds it lives, though by the database's clock it may have run out."""


class Silence:
    """The leases that this process sees at each look, and since when each has been the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is one that nobody sets, in seconds."""
        self._clock, self._looked = clock, -math.inf
        self._seen: dict[int, _Watched] = {}
        """By trial id."""
        self.doubtful: list[int] = []
        """At the last look, trials whose lease had run out, was not renewed since, and not watched for long enough."""

    def lost(self, held: Sequence[Held]) -> list[Held]:
        """Of all leases, those whose process is dead, or has renewed them for too long no more."""
        now, before = self._clock(), self._seen
        if now - self._looked > GAP_S:
            before = {}
        self._looked, self._seen = now, {}
        for each in held:
            seen = before.get(each.trial_id, _Watched(each.expires, now, is_renewed=False))
            self._seen[each.trial_id] = seen if seen.expires == each.expires else _Watched(each.expires, now, True)
        lost = [each for each in held if each.holder.is_dead or self._is_silent(each)]
        doubtful = [each for each in held if each.is_expired and not self._seen[each.trial_id].is_renewed]
        self.doubtful = [each.number for each in doubtful if each not in lost]
        return lost

    def _is_silent(self, held: Held) -> bool:
        watched_s = self._looked - self._seen[held.trial_id].since
        return watched_s >= (SILENCE_S if held.is_expired else LEASE_S + SILENCE_S)
