"""Which kind of machine this is: the name of the overlay in ``config/env`` to use."""

from __future__ import annotations

import os
from collections.abc import Mapping

ENVIRONMENTS = ("local", "colab", "kaggle", "cluster", "ci")
_SIGNS = {
    "kaggle": ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE"),
    "colab": ("COLAB_RELEASE_TAG", "COLAB_GPU"),
    "cluster": ("SLURM_JOB_ID", "RAY_ADDRESS", "PBS_JOBID", "LSB_JOBID"),
}


def detect_environment(variables: Mapping[str, str] = os.environ) -> str:
    """kaggle, colab, cluster or local, by the variables those platforms set (`ci` is only ever asked for)."""
    for name, signs in _SIGNS.items():
        if any(sign in variables for sign in signs):
            return name
    return "local"
