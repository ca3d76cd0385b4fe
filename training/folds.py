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
    _check(labels, groups, config)
    groups = groups if config.grouped else None
    folds = np.full((config.repeats, num_samples), TEST, dtype=np.int16)
    test_parts = _parts(labels, groups, config, num_parts=max(2, round(1 / config.test_fraction)), seed=config.seed)
    kept = np.flatnonzero(test_parts != 0)
    for repeat in range(config.repeats):
        kept_groups = None if groups is None else groups[kept]
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


def _check(labels: np.ndarray, groups: np.ndarray | None, config: CrossValidationConfig) -> None:
    most = max(config.folds + 1, round(1 / config.test_fraction))
    if config.grouped:
        num_groups = 0 if groups is None else len(np.unique(groups))
        if num_groups < most:
            raise DataError(f"{num_groups} groups are too few for {config.folds} folds and a test split of groups")
    if config.stratified:
        counts = np.bincount(labels)
        fewest = int(counts[counts > 0].min())
        if fewest < most:
            raise DataError(
                f"the rarest class has {fewest} samples, too few for {config.folds} stratified folds and a test split"
                f" (at least {most}); use fewer folds, more samples, or cross_validation.stratified: false"
            )
