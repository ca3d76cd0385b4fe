"""Whatever stands in a file or after ``--set``: a checked study, or an error that names a place. Never anything else.

``HPO_FUZZ=50 pytest tests/unit/training/config/test_fuzz.py`` tries fifty times as many examples.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpo.definition import StudyDefinition, load_definition
from hpo.errors import StudyNotFoundError
from training.errors import ConfigError

CHECKOUT = Path(__file__).parents[4]
STUDY = (CHECKOUT / "studies/bert_cv.yaml").read_text()
BASE = (CHECKOUT / "config/train.yaml").read_text()
FACTOR = float(os.environ.get("HPO_FUZZ", "1"))


def examples(number: int) -> settings:
    """`number` examples, times $HPO_FUZZ; a busy machine is no failure."""
    ignored = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(max_examples=int(number * FACTOR), deadline=None, suppress_health_check=ignored)


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[Path]:
    """The folder that the files of each example are written to, and the working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "config").mkdir()
        os.chdir(path)
        yield path
        os.chdir(before)


def check(study: str | bytes = STUDY, base: str | bytes = BASE, chosen: tuple[str, ...] = ()) -> StudyDefinition | None:
    """Load a study of these files; what it raises names a place on every line."""
    for path, content in ((Path("study.yaml"), study), (Path("config/train.yaml"), base)):
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        definition = load_definition("study.yaml", environment="local", settings=chosen)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message.strip() and "\n" not in problem.message, problem
            in_settings = problem.place in {f"--set {setting}" for setting in chosen}
            assert in_settings or re.fullmatch(r"defaults|(study|config/train)\.yaml(:\d+)?", problem.place), problem
        return None
    assert isinstance(definition, StudyDefinition)
    return definition


# What people write by mistake

CHARACTERS = st.sampled_from(list("abz09.:-#'\"{}[]&*!|>%@`,?~ \t\n\r\\\x00\x07\x85\ufeff\u2028é😀\udc80"))
SNIPPETS = st.sampled_from(
    [
        "a: ",
        "\n  ",
        "\n- ",
        "- ",
        ": ",
        "&x ",
        "*x",
        "!!str ",
        "{",
        "}",
        "[",
        "]",
        "---\n",
        "...\n",
        "? ",
        "| \n",
        "<<: ",
    ]
)
SOUP = st.lists(CHARACTERS | SNIPPETS | st.sampled_from(STUDY.split()), max_size=60).map("".join) | st.text(
    max_size=200
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "~", "no", "true", "0", "-1", "1", "2.5", "1e-5", "1e400", "-1e400", ".nan", ".inf", "9" * 299, "9" * 350]
        + ["[]", "{}", "[1]", "[1, 2]", "[2, 1]", "[a, b]", "[1e-300, 1e300]", "[0, 999999999999]", "[[]]", "{a: 1}"]
        + [
            "{a: {b: [1]}}",
            "[{a: 1}]",
            "[.nan, .inf]",
            "[null]",
            "[true, 1, 1.0]",
            "'",
            '"x"',
            "x" * 5000,
            "grid",
            "2h",
        ]
        + ["-5 m", "../x", "/", "a\\0b", "\x7f", "sgd", "loss", "maximize", "optimizer.lr", "{int: [1, 9]}"]
        + ["{float: [0.1, 0.5], step: 1e-9}", "{choice: [adamw, {}]}", "{when: {a: 1}}", "[" * 60 + "]" * 60]
    ),
    st.floats().map(repr),
    st.integers().map(str),
    st.text(CHARACTERS, max_size=8),
)
Mutation = Callable[[str], str]


def at_line(change: Callable[[list[str], int], None]) -> st.SearchStrategy[Mutation]:
    def mutation(position: int) -> Mutation:
        def mutate(text: str) -> str:
            lines = text.splitlines(keepends=True)
            if lines:
                change(lines, position % len(lines))
            return "".join(lines)

        return mutate

    return st.integers(0, 200).map(mutation)


def delete(lines: list[str], index: int) -> None:
    del lines[index]


def duplicate(lines: list[str], index: int) -> None:
    lines.insert(index, lines[index])


def swap_lines(lines: list[str], index: int) -> None:
    lines[index], lines[index - 1] = lines[index - 1], lines[index]


def indent(lines: list[str], index: int) -> None:
    lines[index] = "  " + lines[index]


def dedent(lines: list[str], index: int) -> None:
    lines[index] = lines[index].removeprefix(" ")


def swap_characters(position: int) -> Mutation:
    def mutate(text: str) -> str:
        at = position % max(1, len(text) - 1)
        return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]

    return mutate


def insert(position: int, piece: str) -> Mutation:
    def mutate(text: str) -> str:
        at = position % (len(text) + 1)
        return text[:at] + piece + text[at:]

    return mutate


def replace_value(position: int, value: str) -> Mutation:
    """Put `value` in the place of one that stands after a colon, up to the next comma, brace or end of line."""

    def mutate(text: str) -> str:
        colons = [at for at in range(len(text)) if text[at : at + 2] == ": "]
        if not colons:
            return text
        start = colons[position % len(colons)] + 2
        if text[start : start + 1] in ("{", "["):  # the whole container
            end = text.find("\n", start)
        else:
            end = min((at for mark in ",}\n" if (at := text.find(mark, start)) >= 0), default=len(text))
        return text[:start] + value + text[end:]

    return mutate


POSITIONS = st.integers(0, 2000)
MUTATIONS = st.one_of(
    *(at_line(change) for change in (delete, duplicate, swap_lines, indent, dedent)),
    st.builds(swap_characters, POSITIONS),
    st.builds(insert, POSITIONS, CHARACTERS | SNIPPETS),
    st.builds(replace_value, POSITIONS, VALUES),
    st.builds(replace_value, POSITIONS, VALUES),
)


def mutated(text: str, mutations: list[Mutation]) -> str:
    for mutate in mutations:
        text = mutate(text)
    return text


# Files


def test_the_files_that_are_mutated_here_are_right_to_begin_with() -> None:
    assert check() is not None


@examples(100)
@given(st.lists(MUTATIONS, min_size=1, max_size=3))
def test_a_mutated_study_is_a_definition_or_an_error_with_places(mutations: list[Mutation]) -> None:
    check(study=mutated(STUDY, mutations))


@examples(60)
@given(st.lists(MUTATIONS, min_size=1, max_size=3))
def test_a_mutated_base_is_a_definition_or_an_error_with_places(mutations: list[Mutation]) -> None:
    check(base=mutated(BASE, mutations))


@examples(40)
@given(SOUP | st.binary(max_size=200), SOUP | st.binary(max_size=200))
@example(b"\xff\xfe", "")
@example("", "")
@example("[" * 20_000, "a: " + "{" * 20_000)
@example(STUDY + "base: " + "x" * 5000, "")
@example(STUDY + "base: /dev/null\n", "")
def test_any_text_or_bytes_are_a_definition_or_an_error_with_places(study: str | bytes, base: str | bytes) -> None:
    check(study=study)
    check(base=base)


@pytest.mark.parametrize("file", ["study", "base"])
@pytest.mark.parametrize("key", ["timeout", "seed", "folds", "float", "int", "choice", "step", "when", "name", "study"])
@examples(3)
@given(value=VALUES)
@example(value="9" * 299)
@example(value="[1e-300, 1e300]")
def test_any_value_of_a_key_is_a_definition_or_an_error_with_places(file: str, key: str, value: str) -> None:
    head, _, tail = STUDY.partition("search_space:\n")
    blocks = {
        "timeout": f"{STUDY}  timeout: {value}\n",
        "seed": STUDY.replace("seed: 0", f"seed: {value}"),
        "folds": STUDY.replace("folds: 5", f"folds: {value}"),
        "name": STUDY.replace("name: tpe", f"name: {value}"),
        "study": STUDY.replace("study: bert_cv", f"study: {value}"),
    }
    parameter = "training.epochs: {int: [1, 9], %s: %s}" if key in {"step", "when"} else "training.epochs: {%s: %s}"
    study = blocks.get(key) or f"{head}search_space:\n  {parameter % (key, value)}\n{tail}"
    if file == "study":
        check(study=study)
    else:
        check(base=BASE.replace("seed: 0", f"seed: {value}").replace("name: cosine", f"{key}: {value}"))


GRID = """study: grid
objective: {metric: accuracy, direction: maximize}
sampler: {name: grid}
search_space:
"""


@examples(30)
@given(st.lists(st.tuples(st.sampled_from(["float", "int", "choice"]), VALUES, VALUES), min_size=1, max_size=3))
@example([("int", "[1, 9007199254740992]", "1"), ("int", "[1, 9007199254740992]", "2")])
@example([("float", "[0.0, 1e300]", "1e-300")])
@example([("float", "[0.1, 0.7]", "0.1")])
def test_any_grid_is_a_definition_or_an_error_with_places(parameters: list[tuple[str, str, str]]) -> None:
    names = ["optimizer.lr", "training.epochs", "model.vocab_size"]
    lines = [
        f"  {name}: {{{kind}: {value}, step: {step}}}\n"
        for name, (kind, value, step) in zip(names, parameters, strict=False)
    ]
    check(study=GRID + "".join(lines))


# The command line

KEYS = st.sampled_from(
    ["optimizer.lr", "optimizer", "optimizer.name", "model.x.y", "cross_validation.fold", "seed", "x", ""]
)


@examples(60)
@given(st.lists(st.builds("{}={}".format, KEYS, VALUES | SOUP) | SOUP, max_size=3))
@example([".".join(["a"] * 5000) + "=1"])
@example(["model=" + "[" * 20_000])
@example(["optimizer.lr=1.0", "training.global_batch_size=7"])
@example(["seed=\udc80", "seed=1\nmodel: 2", "task=__main__:X"])
def test_any_setting_is_a_definition_or_an_error_with_places(chosen: list[str]) -> None:
    check(chosen=tuple(chosen))


@examples(40)
@given(SOUP)
@example("x" * 5000)
@example("a\0b")
@example("/")
def test_any_name_of_a_study_is_found_or_said_to_be_missing(name: str) -> None:
    check()  # leaves files that a name might hit
    try:
        load_definition(name, environment="local")
    except StudyNotFoundError as error:
        assert str(error).startswith(f"--study {name}: ")
    except ConfigError as error:
        assert all(problem.place for problem in error.problems)
