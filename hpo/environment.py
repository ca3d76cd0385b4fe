"""Which kind of machine this is, and so which overlay of ``config/env`` it gets."""

from __future__ import annotations

import os
from collections.abc import Mapping

ENVIRONMENTS = ("local", "colab", "kaggle", "cluster", "ci")
"""The overlays; `ci` is only ever asked for."""
OVERLAYS = {"slurm": "cluster", "ray": "cluster"}
"""Platforms whose overlay has another name."""
_SIGNS = {
    "kaggle": ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE"),
    "colab": ("COLAB_RELEASE_TAG", "COLAB_GPU"),
    "slurm": ("SLURM_JOB_ID",),
    "ray": ("RAY_ADDRESS", "RAY_JOB_ID"),
    "cluster": ("PBS_JOBID", "LSB_JOBID"),
}


def detect_platform(variables: Mapping[str, str] = os.environ) -> str:
    """kaggle, colab, slurm, ray, cluster (another scheduler) or local, by the variables those platforms set."""
    return next((name for name, signs in _SIGNS.items() if any(sign in variables for sign in signs)), "local")


def detect_environment(variables: Mapping[str, str] = os.environ) -> str:
    """The overlay of this machine's platform."""
    platform = detect_platform(variables)
    return OVERLAYS.get(platform, platform)
