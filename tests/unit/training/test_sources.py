"""Raw samples: every kind of source, and what a user reads when one is wrong."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import api_docs, package_docs
from training.config.schema import DataConfig
from training.errors import DataError
from training.sources import Table, fingerprint, load_table

HARD_TEXTS = [
    'says "no", twice',
    "two\nlines",
    "two\r\nmore",
    "Zürich — 東京 \U0001f600",
    "line\u2028separator",
    " a ",
    "NA",
]
LABELS = ["a", "b", "a", "b", "a", "b", "null"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / 'it\'s a "folder", with spaces'
    path.mkdir()
    return path


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(path: Path, texts: list[str], labels: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *zip(texts, labels, strict=True)])


def write_jsonl(path: Path, texts: list[str], labels: list[str]) -> None:
    # As UTF-8 and not as escapes: U+2028 then stands raw inside a line.
    lines = [json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, texts: list[str], labels: list[str]) -> None:
    records = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
    path.write_text(json.dumps(records, indent=2), encoding="utf-8")


def write_parquet(path: Path, texts: list[str], labels: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), str(path))


Writer = Callable[[Path, list[str], list[str]], None]
WRITERS: dict[str, Writer] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts_of(path: Path) -> list[Any]:
    return list(load_table(DataConfig(name=str(path))).column("text", key="data.text_column"))


def error_of(name: object, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_table(DataConfig(name=str(name), **values))
    return str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_every_kind_give_the_texts_as_they_were_written(folder: Path, kind: str) -> None:
    path = folder / f"my reviews{kind}"
    WRITERS[kind](path, HARD_TEXTS, LABELS)
    table = load_table(DataConfig(name=str(path)))
    assert table.num_rows == 7
    assert list(table.column("text", key="data.text_column")) == HARD_TEXTS
    assert list(table.column("label", key="data.label_column")) == LABELS


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_without_samples_is_refused(folder: Path, kind: str) -> None:
    WRITERS[kind](folder / f"none{kind}", [], [])
    assert "holds no samples" in error_of(folder / f"none{kind}")


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json"])
def test_an_empty_text_file_is_refused(folder: Path, kind: str) -> None:
    assert "holds no samples" in error_of(write(folder / f"empty{kind}", ""))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_file_is_named_with_its_whole_path(folder: Path, kind: str) -> None:
    path = folder / f"absent{kind}"
    assert error_of(path).startswith(f"data.name: {path} does not exist; ")


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json"])
def test_bytes_that_are_not_utf8_are_named_with_their_line(folder: Path, kind: str) -> None:
    path = write(folder / f"latin1{kind}", b"text,label\nfine,a\ncaf\xe9,b\n")
    assert error_of(path) == f"{path}:3: byte 0xe9 is not UTF-8; save the file as that"


def test_a_relative_path_is_read_from_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "reviews.csv", "text,label\ngood,a\n")
    monkeypatch.chdir(folder)
    assert load_table(DataConfig(name="reviews.csv")).num_rows == 1
    monkeypatch.setenv("HOME", str(folder))
    assert load_table(DataConfig(name="~/reviews.csv")).num_rows == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbftext,label\r\ngood,a\r\n", ["good"]),  # Excel: byte order mark and Windows line ends
        (b"text,label\n\ngood,a\n\n", ["good"]),  # blank lines
        (b",text,label\n0,good,a\n", ["good"]),  # an index without a name, as pandas writes it
        (b"text,label\n" + b"x" * 200_000 + b",a\n", ["x" * 200_000]),  # beyond the csv module's default limit
        (b"text,label\n007,a\n008,b\n", ["007", "008"]),  # not plain integers: stay as they are
    ],
)
def test_csv_dialects_are_read(folder: Path, content: bytes, expected: list[str]) -> None:
    assert texts_of(write(folder / "x.csv", content)) == expected


def test_a_csv_column_of_integers_becomes_integers(folder: Path) -> None:
    table = load_table(DataConfig(name=str(write(folder / "x.csv", "text,label\na,10\nb,-2\n"))))
    assert table.column("label", key="data.label_column") == [10, -2]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('text,label\n"a\nb",x\none, two,y\n', 4, "3 values, but the header names 2 columns"),
        ("text,label\nlonely\n", 2, "1 values, but the header names 2 columns"),
        ('text,label\nok,a\n"never closed,b\nmore,c\n', 3, "not valid CSV"),
        ('text,label\n"a"b,c\n', 2, "not valid CSV"),
        ("text,label,text\na,b,c\n", 1, "two columns are named 'text'"),
    ],
)
def test_a_broken_csv_row_is_named_with_the_line_it_starts_on(
    folder: Path, content: str, line: int, reason: str
) -> None:
    path = write(folder / "broken.csv", content)
    message = error_of(path)
    assert message.startswith(f"{path}:{line}: {reason}")
    assert ";" in message  # the next step


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ('{"text": "a"}\n\n{"text": "b",}\n', ":3", "not valid JSON"),
        ('{"text": "a"}\n["b"]\n', ":2", "must be an object"),
        ('{"text": "a"}\n' + "[" * 200_000 + "\n", ":2", "not a JSON value that can be read"),
        ('{"text": 1' + "0" * 5000 + "}\n", ":1", "not a JSON value that can be read"),
    ],
)
def test_a_broken_jsonl_line_is_named(folder: Path, content: str, place: str, reason: str) -> None:
    path = write(folder / "broken.jsonl", content)
    assert error_of(path).startswith(f"{path}{place}: {reason}")


def test_json_may_be_lines_too_and_a_wrong_item_is_numbered(folder: Path) -> None:
    assert texts_of(write(folder / "lines.json", '{"text": "a"}\n{"text": "b"}\n')) == ["a", "b"]
    path = write(folder / "list.json", '[{"text": "a"}, "b"]')
    assert error_of(path).startswith(f"{path}: item 2: must be an object")


def test_a_damaged_parquet_file_is_refused_with_its_path(folder: Path) -> None:
    path = write(folder / "x.parquet", b"PAR1 but no more")
    assert error_of(path).startswith(f"{path}: not a Parquet file that can be read")


def test_a_file_of_another_kind_is_refused_with_the_known_kinds(folder: Path) -> None:
    assert "convert it to one of .csv, .jsonl, .json, .parquet" in error_of(write(folder / "x.tsv", "a\tb\n"))


@pytest.mark.parametrize("name", ["", "./nowhere", "/no/such/folder", "a/b/c", "what is this?", "nul\0byte"])
def test_a_name_that_can_be_nothing_is_refused_without_asking_the_hub(name: str) -> None:
    assert "is neither a file or folder here nor a Hugging Face dataset name" in error_of(name)


def test_a_folder_wins_over_the_hub_but_not_over_a_built_in_name(
    folder: Path, hf_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name in ("reviews", "digits"):
        (folder / name).mkdir()
        write_csv(folder / name / "train.csv", ["good"], ["a"])
    assert load_table(DataConfig(name="reviews")).column("text", key="data.text_column") == ["good"]
    assert load_table(DataConfig(name="digits")).num_rows == 1797
    write(folder / "package_docs", "a file of no known kind")
    assert len(fingerprint(DataConfig(name="package_docs"))) == 64


def test_a_wrong_column_names_the_key_the_nearest_column_and_all_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    write(folder / "reviews.csv", "text,label\ngood,a\n")
    table = load_table(DataConfig(name="reviews.csv"))
    with pytest.raises(DataError) as caught:
        table.column("txt", key="data.text_column")
    expected = "'txt' is not a column of reviews.csv; did you mean 'text'? columns: text, label"
    assert str(caught.value) == f"data.text_column: {expected}"


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "c", None],
        ["a", "", "c", " \n"],
        [1.0, float("nan"), 2.0, np.float32("nan")],
        np.asarray([1.0, np.nan, 2.0, np.nan], dtype=np.float32),
        np.asarray([[[1.0, 2.0]], [[1.0, np.nan]], [[0.0, 0.0]], [[np.nan, np.nan]]]),
        np.asarray(["a", None, "c", ""], dtype=object),
    ],
)
def test_missing_values_are_counted_and_the_first_is_named(values: Any) -> None:
    with pytest.raises(DataError, match="data.text_column: 2 of 4 values of 'text' in x are missing.* row 2 "):
        Table("x", {"text": values}).column("text", key="data.text_column")


def test_a_missing_value_is_named_by_its_row_in_the_source_after_a_subset_was_taken() -> None:
    table = Table("x", {"text": [*"abcdef", ""]}).take(np.asarray([6, 0, 1, 2])).take(np.asarray([1, 0]))
    with pytest.raises(DataError, match="1 of 2 values .* first in row 7 "):
        table.column("text", key="data.text_column")


def test_missing_values_in_columns_that_are_not_used_do_no_harm(folder: Path) -> None:
    path = write(folder / "x.jsonl", '{"text": "a", "note": null}\n{"text": "b"}\n')
    assert texts_of(path) == ["a", "b"]
    with pytest.raises(DataError, match="2 of 2 values of 'note'"):
        load_table(DataConfig(name=str(path))).column("note", key="data.group_column")


def test_zero_and_false_are_values() -> None:
    assert Table("x", {"label": [0, False, 0.0]}).column("label", key="data.label_column") == [0, False, 0.0]


def test_take_gives_the_rows_in_the_order_asked_for() -> None:
    table = Table("x", {"text": ["a", "b", "c"], "image": np.arange(6).reshape(3, 2)}).take(np.asarray([2, 0]))
    assert table.column("text", key="k") == ["c", "a"]
    assert np.array_equal(table.column("image", key="k"), [[4, 5], [0, 1]])


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="columns of x differ in length: {'a': 1, 'b': 2}"):
        Table("x", {"a": [1], "b": [1, 2]})


def test_digits_are_images_between_0_and_1_with_a_channel() -> None:
    table = load_table(DataConfig(name="digits"))
    images = np.asarray(table.column("image", key="data.image_column"))
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert set(np.asarray(table.column("label", key="data.label_column")).tolist()) == set(range(10))


def test_package_docs_have_text_label_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_docs, "read_package_docs", lambda: (["t"], ["numpy"], ["numpy.ma"]))
    table = load_table(DataConfig(name="package_docs"))
    assert table.columns == {"text": ["t"], "label": ["numpy"], "group": ["numpy.ma"]}


def test_api_docs_have_text_pair_label_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text": ["t(x)"], "pair": ["p"], "label": ["numpy"], "group": ["numpy.ma"]}
    monkeypatch.setattr(api_docs, "read_api_docs", lambda: columns)
    data = DataConfig(name="api_docs")
    table = load_table(data)
    assert table.columns == columns
    assert table.column(data.pair_column, key="data.pair_column") == ["p"]


@pytest.mark.parametrize("name", ["digits", "package_docs", "api_docs", "x.csv"])
def test_a_subset_of_what_has_none_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write(folder / "x.csv", "text,label\ngood,a\n")
    assert error_of(name, subset="mrpc").startswith("data.subset: 'mrpc' is a part of a Hugging Face dataset")


def save_to_disk(path: Path, **splits: dict[str, list[Any]]) -> Any:
    import datasets

    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    saved = {name: datasets.Dataset.from_dict(columns, features=features) for name, columns in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(path)


def test_a_folder_written_by_save_to_disk_gives_the_split_and_the_names_of_its_classes(folder: Path) -> None:
    saved = folder / "my dataset"
    save_to_disk(saved, train={"text": ["a", "b"], "label": [1, 0]}, test={"text": ["c"], "label": [-1]})
    table = load_table(DataConfig(name=str(saved)))
    assert table.column("text", key="data.text_column") == ["a", "b"]
    assert table.column("label", key="data.label_column") == ["positive", "negative"]
    assert table.take(np.asarray([1])).column("text", key="data.text_column") == ["b"]
    unlabelled = load_table(DataConfig(name=str(saved), source_split="test"))
    with pytest.raises(DataError, match="1 of 1 values of 'label'"):
        unlabelled.column("label", key="data.label_column")
    expected = f"data.source_split: {saved} has no 'validation'; it has train, test"
    assert error_of(saved, source_split="validation") == expected
    assert error_of(saved, subset="mrpc").startswith("data.subset: ")


def test_one_dataset_saved_without_splits_is_read_and_a_damaged_one_refused(folder: Path) -> None:
    import datasets

    saved = folder / "single"
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(saved)
    assert texts_of(saved) == ["a"]
    (saved / "state.json").write_text("{")
    assert error_of(saved).startswith(f"data.name: {saved} is damaged")


def test_a_folder_of_files_is_loaded_by_split(folder: Path, hf_cache: None) -> None:
    write_csv(folder / "train.csv", ["good", "bad"], ["a", "b"])
    write_csv(folder / "test.csv", ["so so"], ["a"])
    assert texts_of(folder) == ["good", "bad"]
    assert load_table(DataConfig(name=str(folder), source_split="test")).num_rows == 1
    message = error_of(folder, source_split="validation")
    assert "cannot be loaded as a Hugging Face dataset" in message and "data.source_split" in message


def test_a_folder_without_data_is_refused(folder: Path, hf_cache: None) -> None:
    assert "cannot be loaded as a Hugging Face dataset" in error_of(folder)


def image_file(path: Path, *, damaged: bool = False) -> np.ndarray:
    """Write a Parquet file of two 3x2 colour images, as `datasets` does; the second may be no image at all."""
    import datasets
    from PIL import Image

    pixels = np.arange(36, dtype=np.uint8).reshape(2, 3, 2, 3)
    images: list[Any] = [Image.fromarray(image) for image in pixels]
    if damaged:
        images[1] = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features).to_parquet(path)
    return pixels


def test_images_of_datasets_come_back_as_arrays(folder: Path) -> None:
    pixels = image_file(folder / "pets.parquet")
    table = load_table(DataConfig(name=str(folder / "pets.parquet")))
    images = [np.asarray(image) for image in table.column("image", key="data.image_column")]
    assert np.array_equal(images, pixels)
    assert table.column("label", key="data.label_column") == ["cat", "dog"]
    last = table.take(np.asarray([1])).column("image", key="data.image_column")
    assert np.array_equal(np.asarray(last[0]), pixels[1])


def test_a_damaged_image_is_an_error_only_where_it_is_used(folder: Path) -> None:
    path = folder / "pets.parquet"
    image_file(path, damaged=True)
    table = load_table(DataConfig(name=str(path)))
    assert len(table.take(np.asarray([0])).column("image", key="data.image_column")) == 1
    assert table.take(np.asarray([1])).column("label", key="data.label_column") == ["dog"]
    with pytest.raises(DataError, match="data.image_column: 'image' of .* cannot be read"):
        table.column("image", key="data.image_column")


PROBE = """
import sys
from training.config.schema import DataConfig
from training.errors import DataError
from training.sources import load_table
try:
    load_table(DataConfig(name=sys.argv[1]))
except DataError as error:
    print(error)
"""


def run_python(code: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_hub_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    # In a process of its own: the hub's client reads its settings once, at import.
    message = run_python(PROBE, "package_doc", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert message.startswith("data.name: 'package_doc' (subset None, split train) cannot be loaded")
    assert "did you mean 'package_docs'?" in message and "the network, or use a local file" in message


def test_importing_sources_costs_only_numpy() -> None:
    loaded = run_python("import sys, training.sources; print(*sys.modules)").split()
    heavy = {"datasets", "pandas", "pyarrow", "scipy", "sklearn", "torch", "pydantic", "training.package_docs"}
    heavy |= {"training.api_docs", "training.package_sources"}
    assert not heavy & set(loaded)
    assert "numpy" in loaded


def test_the_fingerprint_of_a_file_follows_its_size_time_and_place(folder: Path) -> None:
    path = write(folder / "x.csv", "text,label\ngood,a\n")
    os.utime(path, ns=(1, 1_000))
    data = DataConfig(name=str(path))
    first = fingerprint(data)
    assert first == fingerprint(DataConfig(name=str(path), text_column="other", max_samples=3))
    os.utime(path, ns=(1, 1_001))
    touched = fingerprint(data)
    write(path, "text,label\nbetter,a\n")
    os.utime(path, ns=(1, 1_001))
    longer = fingerprint(data)
    copy = write(folder / "y.csv", "text,label\nbetter,a\n")
    os.utime(copy, ns=(1, 1_001))
    assert len({first, touched, longer, fingerprint(DataConfig(name=str(copy)))}) == 4


def test_the_fingerprint_of_a_folder_follows_its_files(folder: Path) -> None:
    write(folder / "train.csv", "text,label\ngood,a\n")
    data = DataConfig(name=str(folder))
    first = fingerprint(data)
    assert first == fingerprint(data)
    (folder / "deep").mkdir()
    extra = write(folder / "deep" / "test.csv", "text,label\n")
    with_extra = fingerprint(data)
    extra.rename(folder / "deep" / "other.csv")
    assert len({first, with_extra, fingerprint(data)}) == 3


def test_the_fingerprint_of_built_in_data_follows_the_versions_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("digits", "package_docs", "api_docs")
    before = [fingerprint(DataConfig(name=name)) for name in names]
    assert before == [fingerprint(DataConfig(name=name, subset=None)) for name in names] and len(set(before)) == 3
    monkeypatch.setattr("training.package_sources.version_of", lambda name: "99")
    after = [fingerprint(DataConfig(name=name)) for name in names]
    assert not set(after) & set(before)


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("package_docs.py", {"package_docs"}),
        ("api_docs.py", {"api_docs"}),
        ("package_sources.py", {"package_docs", "api_docs"}),
    ],
)
def test_the_fingerprint_of_built_in_text_follows_the_code_that_makes_it(
    edited: str, changed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: fingerprint(DataConfig(name=name)) for name in ("digits", "package_docs", "api_docs")}
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + b"#" * (path.name == edited))
    assert {name for name in before if fingerprint(DataConfig(name=name)) != before[name]} == changed


def test_the_fingerprint_of_a_hub_dataset_follows_name_subset_and_split_and_loads_nothing() -> None:
    values: list[dict[str, Any]] = [{"name": "glue"}, {"name": "imdb"}, {"name": "glue", "subset": "mrpc"}]
    values.append({"name": "glue", "source_split": "test"})
    assert len({fingerprint(DataConfig(**each)) for each in values}) == 4


def test_the_fingerprint_of_a_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        fingerprint(DataConfig(name=str(folder / "absent.csv")))
