"""What a job kept of each sample it was scored on, and metrics from any resample of it. Torch-free.

    predictions/samples.npy   (n,) int32: which sample of the prepared data each row is of; the same in every trial
    predictions/NAME.npy      (n, ...): the rows NAME of the task
    predictions/checksums.json  the CRC-32 of each of these files

A classifier keeps ``labels``, ``predicted``, ``probabilities`` (float16) and ``loss``. Any other metric is the mean of
the rows that bear its name, weighted by the rows ``weight`` where there are such. Rows are plain arrays of small types,
to be mapped into memory: folds are put together, and trials paired, by `samples`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import DataError

SAMPLES = "samples"
WEIGHT = "weight"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"[A-Za-z]\w*")

Rows = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Rows of the samples that one job was scored on."""

    samples: np.ndarray
    """(n,) int32: index of each in the prepared data."""
    rows: Rows
    """By name, each (n, ...)."""


def is_row_name(name: str) -> bool:
    """Whether rows may be called so: they become a file."""
    return name != SAMPLES and _NAME.fullmatch(name) is not None


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write `folder`, as a whole or not at all, in place of one that is there."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        for name, array in {SAMPLES: predictions.samples, **predictions.rows}.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        checksums = {path.stem: _checksum(path) for path in temporary.glob("*.npy")}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_predictions(folder: Path, *, is_flat: bool = False) -> Predictions | None:
    """What is in `folder`, mapped into memory; None when there is none. Raises DataError when it is damaged.

    `is_flat` leaves out the rows of several values, such as probabilities, which are most of it.
    """
    if not folder.is_dir():
        return None
    try:
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
        arrays = {name: array for name, array in arrays.items() if array.ndim == 1 or not is_flat}
        _check(folder, arrays)
        samples = arrays.pop(SAMPLES)
    except Exception as error:  # of many kinds: numpy parses the head of a file as Python
        raise DataError(f"predictions in {folder} are damaged ({error}); remove that folder") from error
    if samples.ndim != 1 or any(len(array) != len(samples) for array in arrays.values()):
        raise DataError(f"predictions in {folder} are damaged (their files differ in length); remove that folder")
    return Predictions(samples=samples, rows=arrays)


def _check(folder: Path, arrays: Rows) -> None:
    """Raises ValueError when a file is not what was written; what has no checksums is taken as it is."""
    with contextlib.suppress(FileNotFoundError):
        checksums = json.loads((folder / CHECKSUMS).read_bytes())
        for name in arrays:
            if _checksum(folder / f"{name}.npy") != checksums[name]:
                raise ValueError(f"the checksum of {name}.npy is another")


def _checksum(file: Path) -> str:
    return f"{zlib.crc32(file.read_bytes()):08x}"


def joined(parts: list[Predictions]) -> Predictions:
    """The rows of several folds as one, in the order of the samples."""
    samples = np.concatenate([part.samples for part in parts])
    order = np.argsort(samples, kind="stable")
    names = set.intersection(*(set(part.rows) for part in parts))
    if len(np.unique(samples)) < len(samples):
        raise DataError("two folds kept predictions of the same samples; remove those that are damaged")
    try:
        rows = {name: np.concatenate([part.rows[name] for part in parts])[order] for name in sorted(names)}
    except ValueError as error:
        raise DataError(
            f"predictions of two folds differ in their form ({error}); remove those that are damaged"
        ) from error
    return Predictions(samples=samples[order], rows=rows)


def can_score(rows: Rows, metric: str) -> bool:
    """Whether `metric` follows from `rows`."""
    if metric in ("accuracy", "balanced_accuracy", "f1_macro") and {"labels", "predicted"} <= rows.keys():
        return True
    return metric in rows or (metric == "perplexity" and "loss" in rows)


def score(rows: Rows, metric: str, counts: np.ndarray | None = None) -> np.ndarray:
    """(resamples,) float64: `metric` over each resample of the rows; NaN for one that has none that count.

    `counts` (resamples, n) says how often each row is in it; None is one resample that has each once. The metrics of
    classifiers are those of scikit-learn. Raises DataError when the rows do not say.
    """
    if not can_score(rows, metric):
        raise DataError(f"{metric} does not follow from what the task keeps of each sample: {', '.join(sorted(rows))}")
    if counts is None:
        counts = np.ones((1, len(next(iter(rows.values())))))
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric in ("balanced_accuracy", "f1_macro") and metric not in rows:
            return _over_classes(rows, metric, counts)
        if metric == "perplexity" and metric not in rows:
            perplexity: np.ndarray = np.exp(np.minimum(score(rows, "loss", counts), 700.0))
            return perplexity
        values = np.asarray(rows[metric] if metric in rows else rows["labels"] == rows["predicted"], dtype=np.float64)
        weight = np.asarray(rows.get(WEIGHT, np.ones(len(values))), dtype=np.float64)
        mean: np.ndarray = (counts @ (values * weight)) / (counts @ weight)
        return mean


def _over_classes(rows: Rows, metric: str, counts: np.ndarray) -> np.ndarray:
    labels, predicted = (np.asarray(rows[name], dtype=np.int64) for name in ("labels", "predicted"))
    classes = np.union1d(labels, predicted)
    is_label, is_predicted = labels[:, None] == classes, predicted[:, None] == classes
    # (resamples, classes)
    hits, actual, found = (
        counts @ each.astype(np.float64) for each in (is_label & is_predicted, is_label, is_predicted)
    )
    if metric == "balanced_accuracy":
        values, counted = hits / actual, actual > 0
    else:
        values, counted = 2 * hits / (actual + found), actual + found > 0
    mean: np.ndarray = np.where(counted, values, 0.0).sum(axis=1) / counted.sum(axis=1)
    return mean
