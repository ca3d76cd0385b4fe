"""How the ranks of a job share one optimizer step's batch: exactly, so that a batch means the same anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from training.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """global batch size = ranks x `num_micro_batches` x `micro_batch_size`."""

    micro_batch_size: int
    """Samples that a rank works on at a time."""
    num_micro_batches: int
    """Of each rank in one optimizer step."""


def plan_batch(
    *, global_batch_size: int, world_size: int, accumulate: Literal["auto"] | int, limit: int | None
) -> BatchPlan:
    """Micro-batches of at most `limit` samples (None: no limit), as few as possible or `accumulate` of them.

    Raises ConfigError, with the nearest global batch sizes that can be shared.
    """
    parts = world_size * (1 if accumulate == "auto" else accumulate)
    if global_batch_size % parts:
        raise _problem("global_batch_size", _not_shared(global_batch_size, world_size, accumulate, parts))
    share = global_batch_size // world_size
    largest = max(size for size in _divisors(share) if size <= (limit or share))
    num_micro_batches = share // largest if accumulate == "auto" else accumulate
    plan = BatchPlan(micro_batch_size=share // num_micro_batches, num_micro_batches=num_micro_batches)
    if limit is not None and plan.micro_batch_size > limit:
        raise _problem(
            "accumulate_grad_batches",
            f"{accumulate} micro-batches of {plan.micro_batch_size} samples are larger than the limit of {limit}"
            f" (max_micro_batch_size or gradient_cache.chunk_size); use {-(-share // limit)} or more, or auto",
        )
    return plan


def _divisors(number: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return {*small, *(number // n for n in small)}


def _not_shared(batch: int, world_size: int, accumulate: Literal["auto"] | int, parts: int) -> str:
    below = batch - batch % parts
    nearest = " or ".join(str(size) for size in (below, below + parts) if size)
    micro_batches = "" if accumulate == "auto" else f" x {accumulate} micro-batches"
    return f"{batch} cannot be shared exactly by {world_size} ranks{micro_batches}; nearest: {nearest}"


def _problem(key: str, message: str) -> ConfigError:
    return ConfigError([Problem(place=f"training.{key}", message=f"training.{key} {message}")])
