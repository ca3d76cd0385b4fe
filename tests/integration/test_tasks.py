"""Models from an architecture block, a folder and an installed package; data from a local file; vision transformers."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from hpo.trial import JobStatus, TrialResult, run_single_trial
from training.config import JobConfig
from training.run_dir import RunDir

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def run(folder: Path, **values: object) -> TrialResult:
    config = JobConfig.model_validate(
        {
            "training": {"epochs": 3, "global_batch_size": 16},
            "optimizer": {"lr": 1e-2},
            "cross_validation": {"folds": 2, "fold": 0},
            "distributed": {"accelerator": "cpu"},
            "output": {"root": str(folder.parent / "runs")},
            **values,
        }
    )
    result = run_single_trial(config, RunDir(folder), on_record=lambda record: False, on_notice=print)
    assert result.status is JobStatus.COMPLETE, result.failure
    return result


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_a_text_model_trained_on_a_csv_file_is_where_the_next_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "reviews, 'quoted'.csv").open("w", newline="") as file:
        rows = [
            (f'a "fine" day, number {i}\nindeed', "good") if i % 2 else (f"a poor day {i}", "bad") for i in range(160)
        ]
        csv.writer(file).writerows([("review", "stars"), *rows])
    data = {"name": str(tmp_path / "reviews, 'quoted'.csv"), "text_column": "review", "label_column": "stars"}
    first = run(
        tmp_path / "first", data=data, model={"architecture": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2}
    )
    assert (first.run_dir.model / "tokenizer.json").is_file()

    package = tmp_path / "site" / "weights_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inner").symlink_to(first.run_dir.model)
    monkeypatch.setenv("PYTHONPATH", str(package.parent) + (":" + ":".join(filter(None, sys.path))))
    for name, reference in (("folder", str(first.run_dir.model)), ("package", "package:weights_package/inner")):
        again = run(tmp_path / name, data=data, model={"pretrained": reference}, training={"epochs": 0})
        assert again.metrics == first.metrics, "not the weights that were saved"


def test_a_vision_transformer_and_a_convolutional_network_learn_from_digits(tmp_path: Path) -> None:
    data = {"name": "digits", "max_samples": 300}
    for model in ({"architecture": "vit", "patch_size": 2, **TINY}, {"architecture": "cnn", "hidden_size": 8}):
        result = run(tmp_path / str(model["architecture"]), task="image_classification", data=data, model=model)
        assert 0.0 < result.metrics["accuracy"] <= 1.0
