"""Metrics of any task, where ``output.measure`` asks for them: how large the model is, and how fast.

parameters      how many numbers it holds: exact, the same under every strategy
inference_ms    wall milliseconds per scored sample, on the device it was trained on: as noisy as the machine is busy
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn

from training.data import Batch
from training.distributed import RunContext


class Pace:
    """The times of an evaluation's batches. Nothing is timed unless it is asked for, since a GPU is waited for."""

    def __init__(self, device: torch.device, *, is_asked: bool) -> None:
        self._device, self._is_asked = device, is_asked
        self._sample_ms: list[float] = []

    @contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Time what is done with `batch`, which lies on the device."""
        if not self._is_asked:
            yield
            return
        began = self._now()
        yield
        self._sample_ms.append((self._now() - began) * 1000 / len(next(iter(batch.values()))))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def sample_ms(self) -> float:
        """Milliseconds per sample: the median over the batches, since the first one is slow."""
        return median(self._sample_ms)


def measured(names: Sequence[str], model: nn.Module, pace: Pace, context: RunContext) -> dict[str, float]:
    """The metrics `names` of `model` after an evaluation at that `pace`, averaged over the ranks. All ranks."""
    found: dict[str, float] = {}
    if "parameters" in names:
        found["parameters"] = float(sum(parameter.numel() for parameter in model.parameters()))  # of a shard: the whole
    if "inference_ms" in names:
        of_rank = torch.tensor(pace.sample_ms, dtype=torch.float32, device=context.device)
        found["inference_ms"] = context.sum({"sample_ms": of_rank})["sample_ms"].item() / context.world_size
    return found
