"""Randomness as a function of (seed, epoch, rank, step): a step that is repeated draws the numbers of the first time.

No random state has to be saved in a checkpoint: each epoch, and each step that a checkpoint may start from, is seeded.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and torch (all devices) from a key such as ``(seed, epoch, rank)``."""
    torch.manual_seed(_seed_all_but_torch(key))


def seed_step(*key: int) -> None:
    """The same for the CPU and the GPUs in use: 60 microseconds; asking for devices of all kinds takes 200 more."""
    word = _seed_all_but_torch(key)
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)


def _seed_all_but_torch(key: tuple[int, ...]) -> int:
    words = np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(2)  # (3,) is not (3, 0, 0)
    random.seed(int(words[0]))
    np.random.seed(words[0])
    return int(words[1])


def set_arithmetic(device: torch.device) -> None:
    """Have the same numbers come out of the same work, and at the same speed. Call before threads are started.

    A GPU gets deterministic kernels where torch has them, but for the backward of fused attention, which has them only
    when every other operation must have them too; and float32 is float32 there, in convolutions as in matrix products.
    A CPU has such kernels, for one number of threads. There, numbers too small to be normal (below 1e-38) become zero:
    a model that diverged is full of them, and 1.7 times as slow.
    """
    if device.type == "cuda":  # the switch imports torch's compiler, more than a second that a CPU job need not pay
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, at the price of a fill
    else:
        torch.set_flush_denormal(True)
