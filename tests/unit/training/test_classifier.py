"""Metrics from the confusion matrix are scikit-learn's, however the samples were shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor, nn

from training.tasks.classifier import Classifier
from training.tasks.image_networks import Logits


class Fixed(nn.Module):
    """Returns the logits it is given."""

    def forward(self, scores: Tensor) -> Logits:
        return Logits(scores)


def classifier() -> Classifier:
    return Classifier(Fixed(), num_classes=4, save=lambda network, folder: None)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("classes_seen", [4, 3])
def test_metrics_agree_with_scikit_learn(classes_seen: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes_seen, size=97)
    scores = torch.from_numpy(random.normal(size=(97, 4)) + 1.5 * np.eye(4)[labels]).float()
    model, totals = classifier(), {}
    for part in (slice(0, 40), slice(40, 97)):
        found = model.evaluate({"scores": scores[part], "labels": torch.from_numpy(labels[part])})
        for name in found.keys() - set(model.row_names):
            totals[name] = totals.get(name, 0) + found[name].double()
    found = model.summarize(totals)
    predicted = scores.argmax(1).numpy()
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(scores, torch.from_numpy(labels)).item(), rel=1e-5
    )


def test_the_built_in_tasks_report_the_metrics_that_the_schema_lists() -> None:
    from training.config import TASK_METRICS

    found = classifier().summarize({"confusion": torch.eye(4).double(), "loss_sum": torch.tensor(1.0).double()})
    assert {*TASK_METRICS["text_classification"]} == {*TASK_METRICS["image_classification"]} == {*found}


def test_small_networks_save_and_load_to_the_bit(tmp_path: Path) -> None:
    from training.config.schema import ModelConfig
    from training.tasks.image_networks import build_small_network, load_small_network, save_small_network

    images = torch.rand(3, 1, 8, 8)
    for architecture in ("mlp", "cnn"):
        network = build_small_network(
            ModelConfig.model_validate({"architecture": architecture, "hidden_size": 8}), shape=(1, 8, 8), num_classes=5
        ).eval()
        (tmp_path / architecture).mkdir()
        save_small_network(network, tmp_path / architecture)
        assert torch.equal(load_small_network(tmp_path / architecture)(images).logits, network(images).logits)
