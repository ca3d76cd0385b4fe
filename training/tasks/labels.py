"""From a raw table to numbered classes and groups, and the random subset of it to use."""

from __future__ import annotations

import numpy as np

from training.config import JobConfig
from training.config.schema import DataConfig
from training.errors import DataError
from training.sources import Table, Values


def sample(table: Table, config: JobConfig) -> Table:
    """A random subset of ``data.max_samples`` rows in their old order, fixed by ``cross_validation.seed``."""
    wanted = config.data.max_samples
    if wanted is None or wanted >= table.num_rows:
        return table
    chosen = np.random.default_rng(config.cross_validation.seed).permutation(table.num_rows)[:wanted]
    return table.take(np.sort(chosen))


def encode_classes(table: Table, data: DataConfig) -> tuple[list[str], np.ndarray]:
    """Sorted names of the classes, and (samples,) int64 numbers. Raises DataError when there is only one class."""
    names, numbers = _numbered(table.column(data.label_column, key="data.label_column"), data.label_column)
    if len(names) < 2:
        raise DataError(f"column '{data.label_column}' of {data.name} holds one class only: {names.tolist()}")
    return [str(name) for name in names], numbers.astype(np.int64)


def encode_groups(table: Table, config: JobConfig) -> np.ndarray | None:
    """(samples,) int64 group numbers, or None when folds are not grouped."""
    if not config.cross_validation.grouped:
        return None
    column = table.column(config.data.group_column, key="data.group_column")
    return _numbered(column, config.data.group_column)[1].astype(np.int64)


def _numbered(values: Values, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct values, and the number of each. Raises DataError on what is not plain, or not of one type."""
    kinds = {type(value) for value in (values.flat if isinstance(values, np.ndarray) else values)}
    if len(kinds) > 1 or not all(issubclass(kind, (str, int, float, np.generic)) for kind in kinds):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"column '{column}' must hold text or numbers, all of one type; it holds {names}")
    return np.unique(np.asarray(values), return_inverse=True)
