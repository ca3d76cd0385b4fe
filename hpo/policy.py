"""What becomes of a trial whose job failed: decided here, from the failure, what was tried before and ``recovery``.

    failure --decide--> RETRY, HALVE_BATCH    another trial goes on with it, after a while
                        INFEASIBLE            told as a violated constraint: the sampler learns to stay away
                        FAIL, STOP            told as failed; with STOP no other trial begins

A score is told in none of these. A retry that was used up becomes FAIL, a batch that cannot be halved INFEASIBLE.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpo.study_config import RecoveryConfig
from hpo.tally import MICRO_BATCH, NOT_BEFORE, RETRIES
from training.errors import Failure, FailureKind

LONGEST_BACKOFF_S = 300.0
"""However often a trial was tried."""
HOPELESS_AFTER = 3
"""A sweep ends when this many first trials all fail in the same way, for a reason that no hyperparameter explains."""
BY_CHANCE = {
    FailureKind.NON_FINITE,
    FailureKind.OOM,
    FailureKind.SIGNAL,
    FailureKind.INFRASTRUCTURE,
    FailureKind.HANG,
    FailureKind.TIMEOUT,
    FailureKind.PREEMPTION,
}
FROM_OUTSIDE = {FailureKind.PREEMPTION, FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}
"""What it looks like when a scheduler ends the processes of a job."""


class Action(StrEnum):
    """What is done about a failure; the words of ``recovery.on_failure``."""

    RETRY = "retry"
    HALVE_BATCH = "halve_batch"
    INFEASIBLE = "infeasible"
    FAIL = "fail"
    STOP = "stop"

    @property
    def goes_on(self) -> bool:
        """Whether another trial goes on with the one that failed."""
        return self in (Action.RETRY, Action.HALVE_BATCH)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What is known of a trial that failed."""

    retries: int = 0
    """How often it was tried again before."""
    micro_batch: int | None = None
    """Samples that a rank of its job worked on at a time; None where fewer at a time would be another training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is done about one failure."""

    action: Action
    reason: str = ""
    """What there is to say beside the failure."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Of the trial that goes on."""


class Policy:
    """That of one study."""

    def __init__(
        self,
        recovery: RecoveryConfig,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock` is the time of day, in seconds, which a trial's attributes can keep; `chance` is below 1."""
        self._recovery, self._clock, self._chance = recovery, clock, chance

    def action(self, kind: FailureKind) -> Action:
        """What is done about such a failure as long as it can be."""
        return Action(getattr(self._recovery.on_failure, kind))

    def goes_on_after(self, failure: Failure) -> bool:
        """Whether the checkpoints of a trial that fails so are worth keeping."""
        return self.action(failure.kind).goes_on

    def decide(self, failure: Failure, tried: Tried) -> Verdict:
        """What is done now."""
        action, limit = self.action(failure.kind), self._recovery.max_retries
        if failure.kind is FailureKind.PREEMPTION and action is Action.RETRY:  # it is not the trial's fault
            return Verdict(action=action, reason="queued again")
        if action is Action.HALVE_BATCH and (tried.micro_batch is None or tried.micro_batch == 1):
            of_one = "with one sample at a time" if tried.micro_batch else "and fewer samples at a time change the loss"
            return Verdict(action=Action.INFEASIBLE, reason=f"it does not fit, {of_one}")
        if action.goes_on and tried.retries >= limit:
            action = Action.INFEASIBLE if action is Action.HALVE_BATCH else Action.FAIL
            return Verdict(action=action, reason=f"after {limit} of {limit} retries" if limit else "")
        return self._again(action, tried) if action.goes_on else Verdict(action=action)

    def _again(self, action: Action, tried: Tried) -> Verdict:
        retries, smaller = tried.retries + 1, {}
        how = "queued again"
        if action is Action.HALVE_BATCH and tried.micro_batch:
            smaller = {MICRO_BATCH: tried.micro_batch // 2}
            how = f"queued again with micro-batches of {smaller[MICRO_BATCH]}"
        return Verdict(
            action=action,
            reason=f"{how} ({retries} of {self._recovery.max_retries} retries)",
            attributes={RETRIES: retries, NOT_BEFORE: self._clock() + self._backoff_s(tried.retries), **smaller},
        )

    def _backoff_s(self, retries: int) -> float:
        """Twice as long each time, less up to a half by chance, so that trials that failed together do not again."""
        return min(self._recovery.backoff * 2.0**retries, LONGEST_BACKOFF_S) * (1.0 - self._chance() / 2)


class Delays:
    """Trials that wait before they are tried again. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[int, float] = {}
        """By number."""

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, number: int) -> bool:
        return number in self._due

    def add(self, number: int, not_before: float) -> None:
        """The trial waits until that time of day, if it is still to come."""
        wait_s = min(not_before - time.time(), LONGEST_BACKOFF_S)  # the clock may have been set
        if wait_s > 0:
            self._due[number] = self._clock() + wait_s

    def forget(self, number: int) -> None:
        """The trial is over, or goes on."""
        self._due.pop(number, None)

    def wake(self, num: int) -> None:
        """Let `num` trials go on at most, of those that have waited long enough."""
        due = sorted((at, number) for number, at in self._due.items() if at <= self._clock())
        for _, number in due[: max(0, num)]:
            self.forget(number)

    def wait_s(self) -> float:
        """How long until one more has waited long enough; infinite when none will."""
        return min((at - self._clock() for at in self._due.values() if at > self._clock()), default=float("inf"))


def hopeless(failures: Sequence[Failure | None]) -> Failure | None:
    """The common failure of the first trials of a sweep, when they all failed alike; else None."""
    first = [failure for failure in failures[:HOPELESS_AFTER] if failure and failure.kind not in BY_CHANCE]
    # Numbers may differ: sizes, process ids, addresses.
    alike = {(failure.kind, re.sub(r"\d+", "", failure.message)) for failure in first}
    return first[-1] if len(first) == HOPELESS_AFTER and len(alike) == 1 else None
