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


def make_deterministic(device: torch.device) -> None:
    """Choose deterministic kernels on a GPU where torch has them; on a CPU they are, for one number of threads."""
    if device.type == "cuda":  # the switch imports torch's compiler, more than a second that a CPU job need not pay
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
