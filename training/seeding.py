"""Randomness as a function of (seed, epoch, rank), so that a resumed epoch draws the very numbers of the first time.

No random state has to be saved in a checkpoint: every epoch starts by seeding itself.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and torch (all devices) from a key such as ``(seed, epoch, rank)``."""
    words = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[0])
    torch.manual_seed(int(words[1]))


def set_arithmetic(device: torch.device) -> None:
    """Have the same numbers come out of the same work, and at the same speed. Call before threads are started.

    A GPU gets deterministic kernels where torch has them; a CPU has them, for one number of threads. There, numbers too
    small to be normal (below 1e-38) become zero: a model that diverged is full of them, and 1.7 times as slow.
    """
    if device.type == "cuda":  # the switch imports torch's compiler, more than a second that a CPU job need not pay
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_flush_denormal(True)
