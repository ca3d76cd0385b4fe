"""Whether a classifier's probabilities mean what they say, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.predictions import Predictions

NUM_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The winner's confidence in the class it predicts against how often that is right, in bins of confidence."""

    confidence: list[float]
    """Mean of each bin that has samples."""
    accuracy: list[float]
    counts: list[int]
    expected_error: float
    """ECE: the mean of |accuracy - confidence| over bins, weighted by their samples."""


def calibration(repeats: Sequence[Predictions]) -> Calibration | None:
    """Bins of equal width over the out-of-fold predictions; None where there are no probabilities.

    Guo et al. 2017, "On calibration of modern neural networks", arXiv 1706.04599.
    """
    if not all({"probabilities", "labels", "predicted"} <= each.rows.keys() for each in repeats):
        return None
    rows = [each.rows for each in repeats]
    confidence = np.concatenate([each["probabilities"].astype(np.float64).max(axis=1) for each in rows])
    is_right = np.concatenate([each["labels"] == each["predicted"] for each in rows])
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    kept = counts > 0
    means = np.bincount(bins, confidence, NUM_BINS)[kept] / counts[kept]
    shares = np.bincount(bins, is_right, NUM_BINS)[kept] / counts[kept]
    error = float((np.abs(shares - means) * counts[kept]).sum() / counts.sum())
    return Calibration(
        confidence=means.tolist(), accuracy=shares.tolist(), counts=counts[kept].tolist(), expected_error=error
    )


def confusion(repeats: Sequence[Predictions]) -> list[list[int]] | None:
    """(classes, classes) counts of the out-of-fold predictions, true class by row; None when not a classifier's."""
    if not all({"labels", "predicted"} <= each.rows.keys() for each in repeats):
        return None
    labels, predicted = (
        np.concatenate([each.rows[name] for each in repeats]).astype(np.int64) for name in ("labels", "predicted")
    )
    classes = int(max(labels.max(), predicted.max())) + 1
    counts = np.bincount(labels * classes + predicted, minlength=classes**2)
    table: list[list[int]] = counts.reshape(classes, classes).tolist()
    return table
