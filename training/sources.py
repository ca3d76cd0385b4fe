"""Raw samples by name: the built-in data sets, local files, folders of the `datasets` library, the Hugging Face hub.

A Table is read as it is: nothing is dropped, filled in or shuffled. What cannot be read, or lacks a value in a column
that is used, is a DataError that names the place, the rule and the next step. Importing this module costs only numpy;
`datasets`, pyarrow and scikit-learn are imported by the sources that need them.

CSV is comma-separated with a header line, and UTF-8 like all text. Its values stay text as written ("007", "NA"),
but a column of nothing but plain integers becomes integers; an empty field is a missing value.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.errors import DataError

if TYPE_CHECKING:
    from training.config.schema import DataConfig

Values = Sequence[Any] | np.ndarray
Columns = dict[str, Values]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Named columns of equal length: value i of every column belongs to sample i. Raises DataError when they differ."""

    name: str
    """What errors call it."""
    columns: Columns
    rows: np.ndarray | None = None
    """(num_rows,) the row of the source that each sample was, from 0; None when it is all of them in order."""

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of {self.name} differ in length: {lengths}")

    @property
    def num_rows(self) -> int:
        """Samples."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, *, key: str) -> Values:
        """All values of a column. `key` is the configuration key that names it, for the message.

        Raises DataError when there is no such column, or when a value of it is missing: None, NaN or blank text.
        """
        if name not in self.columns:
            raise DataError(f"{key}: {self._no_such_column(name)}")
        values = self._values(name, key)
        missing = _missing(values)
        if len(missing):
            row = missing[0] if self.rows is None else self.rows[missing[0]]
            raise DataError(
                f"{key}: {len(missing)} of {self.num_rows} values of '{name}' in {self.name} are missing or empty,"
                f" first in row {row + 1} (counted from 1, without a header); fill them in or remove those rows"
            )
        return values

    def _values(self, name: str, key: str) -> Values:
        try:
            return self.columns[name][:]  # reads a lazy column, and decodes its images
        except Exception as error:
            raise DataError(f"{key}: '{name}' of {self.name} cannot be read ({_reason(error)}); repair it") from error

    def _no_such_column(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.columns, n=1)
        hint = f" did you mean '{near[0]}'?" if near else ""
        return f"'{name}' is not a column of {self.name};{hint} columns: {', '.join(self.columns)}"

    def take(self, indices: np.ndarray) -> Table:
        """The samples at `indices` ((n,) integers from 0), in that order."""
        rows = indices if self.rows is None else self.rows[indices]
        return Table(self.name, {name: _take(values, indices) for name, values in self.columns.items()}, rows)


def _missing(values: Values) -> np.ndarray:
    """Positions of the missing values."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return np.flatnonzero(np.isnan(values).reshape(len(values), -1).any(axis=1))
    if isinstance(values, np.ndarray) and values.dtype.kind in "biu":
        return np.empty(0, dtype=np.int64)
    return np.asarray([index for index, value in enumerate(values) if _is_missing(value)], dtype=np.int64)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or isinstance(value, float | np.floating) and bool(np.isnan(value))


def _take(values: Any, indices: np.ndarray) -> Values:
    taken: Values
    if isinstance(values, np.ndarray):
        taken = values[indices]
    elif hasattr(values, "source"):  # a lazy column of `datasets`: stays on disk, its images encoded, until it is read
        taken = values.source.select(indices)[values.column_name]
    else:
        taken = [values[index] for index in indices.tolist()]
    return taken


def load_table(data: DataConfig) -> Table:
    """Read ``data.name``. Raises DataError when it cannot be read or holds no samples.

    `package_docs` has the columns text, label (package) and group (module); `api_docs` has those and pair: its text is
    a signature, its pair says what that does; `digits` has image, (1797, 1, 8, 8) float32 in 0..1, and label. Class
    numbers of a Hugging Face dataset become the names of the classes where it knows them.
    """
    path = _local_path(data)
    if data.name in _BUILT_IN:
        read = _BUILT_IN[data.name]
    elif path is None or path.is_dir() and not _is_saved(path):
        return _table(data, _read_dataset(str(path or data.name), data))
    else:
        read = partial(_read_saved, path, data) if path.is_dir() else partial(_read_file, path)
    if data.subset is not None:
        raise DataError(f"data.subset: '{data.subset}' is a part of a Hugging Face dataset; {data.name} has none")
    return _table(data, read())


def _table(data: DataConfig, columns: Columns) -> Table:
    table = Table(data.name, columns)
    if table.num_rows == 0:
        raise DataError(f"data.name: {data.name} holds no samples")
    return table


def fingerprint(data: DataConfig) -> str:
    """64 hex digits that change when the raw content does, without loading it. Raises DataError as load_table does.

    Looks at the size and time of local files and at the versions behind the built-in data sets. A dataset of the hub is
    known by its name, subset and split only: what its owner changes later is not seen.
    """
    path = _local_path(data)
    identity: list[Any] = [data.name if path is None else str(path), data.subset, data.source_split]
    if data.name in _BUILT_IN:
        identity = [data.name, *_built_in_versions(data.name)]
    elif path is not None:
        identity += [_stamp(file, path) for file in _files(path)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _built_in_versions(name: str) -> list[Any]:
    from training.package_sources import package_versions

    if name == "digits":
        return [package_versions(["sklearn"])]
    # Which files can be parsed depends on the Python, and what is made of them on the code that reads them.
    code = hashlib.sha256()
    for file in (f"{name}.py", "package_sources.py"):
        code.update(Path(__file__).with_name(file).read_bytes())
    return [package_versions(), sys.version_info[:2], code.hexdigest()]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _stamp(file: Path, root: Path) -> list[Any]:
    stat = file.stat()
    return [file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns]


def _local_path(data: DataConfig) -> Path | None:
    """The local file or folder that is meant; None for a built-in data set and a name of the hub."""
    if data.name in _BUILT_IN:
        return None
    path = Path(os.path.abspath(os.path.expanduser(data.name)))
    kind, kinds = path.suffix.lower(), ", ".join(_READERS)
    if data.name and os.path.isdir(path) or kind in _READERS and os.path.isfile(path):
        return path
    if os.path.isfile(path):
        raise DataError(f"data.name: {path} is not of a known kind; convert it to one of {kinds}")
    if kind in _READERS:
        raise DataError(f"data.name: {path} does not exist; give a path that does, absolute or from where you run this")
    if not _HUB_NAME.fullmatch(data.name):
        raise DataError(f"data.name: '{data.name}' is neither a file or folder here nor a Hugging Face dataset name")
    return None


def _read_package_docs() -> Columns:
    from training.package_docs import read_package_docs

    texts, labels, groups = read_package_docs()
    return {"text": texts, "label": labels, "group": groups}


def _read_api_docs() -> Columns:
    from training.api_docs import read_api_docs

    return {**read_api_docs()}


def _read_digits() -> Columns:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"image": (digits.images[:, None] / 16).astype(np.float32), "label": digits.target}


def _read_file(path: Path) -> Columns:
    try:
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); check the file and its permissions") from error


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as that"
        ) from error


def _read_csv(path: Path) -> Columns:
    csv.field_size_limit(2**31 - 1)  # the default refuses a text of 128 KiB
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[list[str]] = []
    line = 1
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                raise DataError(
                    f"{path}:{line}: {len(row)} values, but the header names {len(rows[0])} columns;"
                    " put values that hold a comma in double quotes"
                )
            rows += [row] if row else []
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not valid CSV ({error}); check the quotes of the row starting here") from error
    return _columns_of_rows(path, rows)


def _columns_of_rows(path: Path, rows: list[list[str]]) -> Columns:
    header, *rest = rows or [[]]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are named '{twice}'; rename one")
    return {name: _integers_or_text([row[index] for row in rest]) for index, name in enumerate(header)}


def _integers_or_text(values: list[str]) -> list[int] | list[str]:
    return [int(value) for value in values] if all(map(_PLAIN_INTEGER.fullmatch, values)) else values


def _read_jsonl(path: Path) -> Columns:
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    lines = enumerate(_read_text(path).split("\n"), start=1)
    places = ((f"{path}:{number}", line) for number, line in lines if line.strip())
    return _columns_of_records((place, _json(line, place)) for place, line in places)


def _read_json(path: Path) -> Columns:
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    items = enumerate(_json(text, str(path)), start=1)
    return _columns_of_records((f"{path}: item {number}", item) for number, item in items)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{error.msg}, line {error.lineno} column {error.colno} of the value"
        raise DataError(f"{place}: not valid JSON ({at}); write one object a line, or a list of objects") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a JSON value that can be read ({_reason(error)})") from error


def _columns_of_records(records: Iterable[tuple[str, Any]]) -> Columns:
    kept = []
    for place, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{place}: must be an object such as {{'text': ..., 'label': ...}}, not {record!r:.40}")
        kept.append(record)
    names = dict.fromkeys(name for record in kept for name in record)
    return {name: [record.get(name) for record in kept] for name in names}


def _read_parquet(path: Path) -> Columns:
    import datasets
    import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        # Through `datasets`, for the images and class names it keeps in the file's metadata.
        content = pyarrow.parquet.ParquetFile(path).read()
        return _columns_of_dataset(datasets.Dataset(datasets.table.InMemoryTable(content)))
    except Exception as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({_reason(error)}); write it again") from error


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote it."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _read_saved(folder: Path, data: DataConfig) -> Columns:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:
        raise DataError(f"data.name: {folder} is damaged ({_reason(error)}); save the dataset again") from error
    splits = saved if isinstance(saved, dict) else {str(saved.split or data.source_split): saved}
    if data.source_split not in splits:
        raise DataError(f"data.source_split: {folder} has no '{data.source_split}'; it has {', '.join(splits)}")
    return _columns_of_dataset(splits[data.source_split])


def _read_dataset(name: str, data: DataConfig) -> Columns:
    """A dataset of the hub, or a folder that `datasets` can load."""
    import datasets

    try:
        return _columns_of_dataset(datasets.load_dataset(name, data.subset, split=data.source_split))
    except Exception as error:  # unknown name, offline, another split, a damaged download ...
        near = difflib.get_close_matches(data.name, _BUILT_IN, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise DataError(
            f"data.name: '{name}' (subset {data.subset}, split {data.source_split}) cannot be loaded as a Hugging Face"
            f" dataset ({_reason(error)}); {hint}check the name, data.subset, data.source_split and the network, or use"
            f" a local file ({', '.join(_READERS)}) or one of {', '.join(_BUILT_IN)}"
        ) from error


def _columns_of_dataset(dataset: Any) -> Columns:
    """The lazy columns of a `datasets.Dataset`; class numbers become names, and -1 (unlabelled) becomes None."""
    dataset = dataset.with_format(None)
    columns: Columns = {}
    for name, feature in dataset.features.items():
        columns[name] = dataset[name]
        if type(feature).__name__ == "ClassLabel":
            known = dict(enumerate(feature.names))
            columns[name] = [known.get(number) for number in columns[name]]
    return columns


def _reason(error: BaseException) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


_BUILT_IN: dict[str, Callable[[], Columns]] = {
    "package_docs": _read_package_docs,
    "api_docs": _read_api_docs,
    "digits": _read_digits,
}
_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
