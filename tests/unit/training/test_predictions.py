"""What is kept of each sample is there as a whole or not at all, and gives scikit-learn's metrics on any resample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor, nn

from training.config import JobConfig
from training.data import Batch, PreparedData, build_loaders
from training.distributed import RunContext, Statistics
from training.errors import DataError, TrainingError
from training.evaluation import evaluate
from training.job import BuiltJob, keep_result
from training.predictions import Predictions, Rows, can_score, joined, load_predictions, score, write_predictions
from training.reporter import RunDirReporter, SilentReporter
from training.run_dir import RunDir
from training.tasks import TrainingModule
from training.trainer import run_training

SAMPLES = np.array([3, 5, 8], dtype=np.int32)
SKLEARN = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "f1_macro": lambda labels, predicted: f1_score(labels, predicted, average="macro"),
}


def predictions(samples: np.ndarray = SAMPLES, **rows: np.ndarray) -> Predictions:
    return Predictions(samples=samples, rows=rows or {"loss": samples / 2})


# Files


def test_what_was_written_is_mapped_into_memory(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", predictions(probabilities=np.eye(3, dtype=np.float16)))
    found = load_predictions(tmp_path / "predictions")
    assert found is not None
    assert isinstance(found.rows["probabilities"], np.memmap)
    assert found.rows["probabilities"].dtype == np.float16
    assert found.samples.tolist() == [3, 5, 8]
    assert load_predictions(tmp_path / "other") is None


def test_what_is_written_later_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", predictions(loss=SAMPLES, other=SAMPLES))
    write_predictions(tmp_path / "predictions", predictions())
    found = load_predictions(tmp_path / "predictions")
    assert found is not None
    assert found.rows.keys() == {"loss"}


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    write_predictions(folder, predictions())
    unwritable = np.array([object()] * 3)  # refused after the first file
    with pytest.raises(ValueError, match="Object arrays"):
        write_predictions(folder, predictions(loss=SAMPLES, other=unwritable))
    kept = load_predictions(folder)
    assert kept is not None
    assert kept.rows["loss"].tolist() == [1.5, 2.5, 4.0]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


@pytest.mark.parametrize("damage", ["cut", "short", "samples"])
def test_damaged_predictions_are_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "predictions"
    write_predictions(folder, predictions())
    if damage == "cut":
        (folder / "loss.npy").write_bytes(b"\x93NUMPY")
    elif damage == "short":
        np.save(folder / "loss.npy", np.zeros(2))
    else:
        (folder / "samples.npy").unlink()
    with pytest.raises(DataError, match="predictions are damaged.*remove that folder|remove that folder"):
        load_predictions(folder)


def test_folds_are_put_together_by_sample() -> None:
    whole = joined([predictions(np.array([1, 4])), predictions(np.array([0, 2, 3]))])
    assert whole.samples.tolist() == [0, 1, 2, 3, 4]
    assert whole.rows["loss"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


# Metrics


def classified(count: int, classes: int) -> Rows:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count)
    predicted = np.where(random.random(count) < 0.6, labels, random.integers(0, classes + 1, count))
    return {"labels": labels.astype(np.int16), "predicted": predicted.astype(np.int16)}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("metric", SKLEARN)
def test_each_resample_has_the_metric_that_scikit_learn_gives_it(metric: str) -> None:
    rows, random = classified(60, 4), np.random.default_rng(1)
    drawn = random.integers(0, 60, (20, 60))
    drawn[0] = 7  # of one class only
    counts = np.stack([np.bincount(each, minlength=60) for each in drawn])
    expected = [SKLEARN[metric](rows["labels"][each], rows["predicted"][each]) for each in drawn]
    assert score(rows, metric, counts) == pytest.approx(expected)
    assert score(rows, metric) == pytest.approx([SKLEARN[metric](rows["labels"], rows["predicted"])])


def test_other_metrics_are_means_weighted_where_rows_have_a_weight() -> None:
    rows = {"loss": np.array([1.0, 2.0, 9.0]), "weight": np.array([3, 1, 0])}
    assert score(rows, "loss").tolist() == [1.25]
    assert score(rows, "perplexity") == pytest.approx([np.exp(1.25)])
    assert score(rows, "loss", np.array([[0, 1, 0], [1, 3, 0]])).tolist() == [2.0, 1.5]
    assert np.isnan(score(rows, "loss", np.array([[0, 0, 1]]))[0])  # nothing in it counts
    assert score({"mrr": rows["loss"]}, "mrr").tolist() == [4.0]


def test_a_metric_that_rows_do_not_say_is_refused() -> None:
    assert not can_score({"loss": SAMPLES}, "r2")
    with pytest.raises(DataError, match="r2 does not follow from what the task keeps of each sample: loss"):
        score({"loss": SAMPLES}, "r2")


# Jobs


class Line(TrainingModule):
    """y = 2 x; keeps the loss of each sample, and which it was."""

    row_names = ("loss", "x")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch["x"]), 2 * batch["x"])

    def evaluate(self, batch: Batch) -> Statistics:
        losses = (self.layer(batch["x"]) - 2 * batch["x"]).square().squeeze(-1)
        return {"sum": losses.sum(), "count": torch.tensor(len(losses)), "loss": losses, "x": batch["x"].double()}

    def summarize(self, totals: Statistics) -> dict[str, float]:
        assert totals.keys() == {"sum", "count"}
        return {"loss": (totals["sum"] / totals["count"]).item()}


class Careless(Line):
    def predictions(self, rows: Statistics) -> Statistics:
        return {"loss": rows["loss"].mean().reshape(1)}


DATA = PreparedData(arrays={"x": np.arange(40, dtype=np.float32)[:, None]})
CONFIG = JobConfig.model_validate(
    {
        "training": {"epochs": 2, "global_batch_size": 4},
        "cross_validation": {"stratified": False, "fold": 1},
        "distributed": {"accelerator": "cpu"},
        "output": {"save_model": False},
    }
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    """A run directory that a job was prepared in."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare(CONFIG)
    yield run_dir


def train(run_dir: RunDir, config: JobConfig = CONFIG) -> RunDir:
    context, model = RunContext.alone(), Line()
    loaders = build_loaders(DATA, config, context, lambda batch: batch)
    result = run_training(model, loaders, config, context, RunDirReporter(run_dir, context))
    keep_result(result, model, BuiltJob(build_model=Line, loaders=loaders), run_dir, config, context)
    return run_dir


def test_a_job_keeps_what_its_last_evaluation_found_for_each_sample(run_dir: RunDir) -> None:
    kept, outcome = load_predictions(train(run_dir).predictions), run_dir.load_result()
    assert kept is not None
    assert outcome is not None
    assert kept.rows["x"].squeeze().tolist() == kept.samples.tolist()
    assert kept.rows["x"].dtype == np.float32
    assert score(kept.rows, "loss") == pytest.approx([outcome.metrics["loss"]])


def test_a_stopped_job_and_one_that_is_not_to_keep_any_leave_none(run_dir: RunDir) -> None:
    train(run_dir, CONFIG.with_values({"output.keep_predictions": False}))
    assert not run_dir.predictions.exists()
    run_dir.request_stop()
    train(run_dir)
    outcome = run_dir.load_result()
    assert outcome is not None
    assert outcome.stopped
    assert not run_dir.predictions.exists()


def test_a_job_that_was_killed_before_its_result_has_its_predictions_after_all(run_dir: RunDir) -> None:
    config = CONFIG.with_values({"output.keep_checkpoint": True})
    expected = load_predictions(train(run_dir, config).predictions)
    assert expected is not None
    losses = expected.rows["loss"].tolist()
    run_dir.prepare(config, resume=True)
    assert not run_dir.predictions.exists()
    kept = load_predictions(train(run_dir, config).predictions)
    assert kept is not None
    assert kept.rows["loss"].tolist() == losses


def test_a_new_attempt_clears_what_an_earlier_one_kept_or_half_wrote(run_dir: RunDir) -> None:
    train(run_dir)
    (run_dir.path / ".predictions.abc.tmp").mkdir()
    run_dir.prepare(CONFIG)
    assert not list(run_dir.path.glob("*predictions*"))


def test_rows_that_are_not_one_a_sample_are_refused() -> None:
    context = RunContext.alone()
    loaders = build_loaders(DATA, CONFIG, context, lambda batch: batch)
    with pytest.raises(TrainingError, match="Careless keeps 1 rows 'loss' of 7 samples"):
        evaluate(Careless(), loaders, context, keeps_rows=True)
    assert evaluate(Careless(), loaders, context).predictions is None


class Unwilling(RunContext):
    def concatenate(self, rows: Statistics) -> Statistics:
        raise AssertionError("rows were gathered")


def test_rows_are_gathered_only_to_be_kept() -> None:
    context = Unwilling(device=torch.device("cpu"))
    loaders = build_loaders(DATA, CONFIG, context, lambda batch: batch)
    assert evaluate(Line(), loaders, context).predictions is None
    with pytest.raises(AssertionError, match="rows were gathered"):
        evaluate(Line(), loaders, context, keeps_rows=True)


def test_a_script_without_a_run_directory_gets_them_from_the_result() -> None:
    context = RunContext.alone()
    loaders = build_loaders(DATA, CONFIG, context, lambda batch: batch)
    found = run_training(Line(), loaders, CONFIG, context, SilentReporter()).predictions
    assert found is not None
    assert found.samples.tolist() == loaders.scored.tolist()
