"""Bins of confidence, and the confusion of out-of-fold predictions."""

from __future__ import annotations

import numpy as np
import pytest

from hpo.reporting.calibration import calibration, confusion
from training.predictions import Predictions


def predictions(labels: list[int], probabilities: list[list[float]]) -> Predictions:
    chances = np.array(probabilities, dtype=np.float16)
    rows = {"labels": np.array(labels), "predicted": chances.argmax(axis=1), "probabilities": chances}
    return Predictions(samples=np.arange(len(labels)), rows=rows)


def test_the_expected_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    """Two at 0.75, one of them right (gap 0.25); two at 1, both right (gap 0): 0.125."""
    found = calibration([predictions([0, 1, 1, 0], [[0.75, 0.25], [0.75, 0.25], [0, 1], [1, 0]])])
    assert found is not None
    assert found.confidence == [0.75, 1.0]
    assert found.accuracy == [0.5, 1.0]
    assert found.counts == [2, 2]
    assert found.expected_error == pytest.approx(0.125)


def test_confusion_has_the_true_class_by_row_and_all_repeats() -> None:
    once = predictions([0, 1, 2], [[1, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert confusion([once]) == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert confusion([once, once]) == [[2, 0, 0], [0, 0, 2], [0, 0, 2]]


def test_what_is_no_classifier_has_neither() -> None:
    losses = Predictions(samples=np.arange(3), rows={"loss": np.ones(3)})
    assert calibration([losses]) is None
    assert confusion([losses]) is None
