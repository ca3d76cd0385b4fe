"""Which fold each sample belongs to, by scikit-learn's splitters."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from training.config import CrossValidationConfig
from training.data import TEST
from training.errors import DataError


def assign_folds(
    labels: np.ndarray | None, groups: np.ndarray | None, config: CrossValidationConfig, *, num_samples: int
) -> np.ndarray:
    """(repeats, num_samples) int16: the fold of each sample, TEST for the held-out ones.

    The test split is one part of a k-fold split with k = round(1 / test_fraction), by the same rules (stratified,
    grouped) as the folds, and the same for every repeat. Raises DataError when the rules cannot be met.
    """
    labels = np.zeros(num_samples, dtype=np.int64) if labels is None else np.asarray(labels)
    groups = groups if config.grouped else None
    if config.grouped and groups is None:
        raise DataError("cross_validation.grouped is true, but the samples have no groups")
    folds = np.full((config.repeats, num_samples), TEST, dtype=np.int16)
    num_tests = max(2, round(1 / config.test_fraction))
    _check(labels, groups, config, num_parts=num_tests, purpose=f"a test split of {config.test_fraction:g}")
    kept = np.flatnonzero(_parts(labels, groups, config, num_parts=num_tests, seed=config.seed) != 0)
    kept_groups = None if groups is None else groups[kept]
    purpose = f"{config.folds} folds of what the test split leaves"
    _check(labels[kept], kept_groups, config, num_parts=config.folds, purpose=purpose)
    for repeat in range(config.repeats):
        seed = config.seed + 1 + repeat
        folds[repeat, kept] = _parts(labels[kept], kept_groups, config, num_parts=config.folds, seed=seed)
    return folds


def _parts(
    labels: np.ndarray, groups: np.ndarray | None, config: CrossValidationConfig, *, num_parts: int, seed: int
) -> np.ndarray:
    """The part (0 .. num_parts - 1) of each sample."""
    splitter: Any = {
        (False, False): KFold,
        (True, False): StratifiedKFold,
        (False, True): GroupKFold,
        (True, True): StratifiedGroupKFold,
    }[config.stratified, config.grouped](n_splits=num_parts, shuffle=True, random_state=seed)
    parts = np.empty(len(labels), dtype=np.int16)
    for part, (_, scored) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
        parts[scored] = part
    return parts


def _check(
    labels: np.ndarray, groups: np.ndarray | None, config: CrossValidationConfig, *, num_parts: int, purpose: str
) -> None:
    """Whether there is enough to put something of everything into each part."""
    if len(labels) < num_parts:
        raise DataError(f"{len(labels)} samples are too few for {purpose} (at least {num_parts})")
    if groups is not None and len(np.unique(groups)) < num_parts:
        raise DataError(f"{len(np.unique(groups))} groups are too few for {purpose} (at least {num_parts})")
    counts = np.bincount(labels) if config.stratified else np.array([num_parts])
    fewest = int(counts[counts > 0].min())
    if fewest < num_parts:
        raise DataError(
            f"the rarest class has {fewest} samples, too few for {purpose}, each with samples of every"
            f" class (at least {num_parts}); use fewer folds, more samples, or cross_validation.stratified: false"
        )
