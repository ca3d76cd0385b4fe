"""Whatever stands in a file or after ``--set``: a checked study, or an error that names a place. Never anything else.

``scripts/fuzz`` tries many times as many examples.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpo.definition import StudyDefinition, load_definition, load_job
from hpo.errors import StudyNotFoundError
from training.config import JobConfig, dump_yaml, job_config, parse_layer
from training.config.source import scalar
from training.errors import ConfigError

CHECKOUT = Path(__file__).parents[4]
STUDY = (CHECKOUT / "studies/bert_cv.yaml").read_text()
BASE = (CHECKOUT / "config/train.yaml").read_text()
STUDIES = sorted(CHECKOUT.glob("studies/*.yaml"))
JOBS = sorted([*CHECKOUT.glob("config/*.yaml"), *CHECKOUT.glob("config/*/*.yaml"), *CHECKOUT.glob("config/*/*.json")])
FACTOR = float(os.environ.get("HPO_FUZZ", "1"))
"""How many times as many examples as in the tests."""


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
        check_problems(error, chosen)
        return None
    assert isinstance(definition, StudyDefinition)
    assert read_back(definition.job) == definition.job
    return definition


def check_job(text: str) -> JobConfig | None:
    """Load a configuration of this text; what it raises names a place on every line."""
    Path("job.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        job = load_job(Path("job.yaml"), environment="local")
    except ConfigError as error:
        check_problems(error)
        return None
    assert read_back(job) == job
    return job


def check_problems(error: ConfigError, chosen: tuple[str, ...] = ()) -> None:
    assert error.problems
    for problem in error.problems:
        assert problem.message.strip() and "\n" not in problem.message, problem
        in_settings = problem.place in {f"--set {setting}" for setting in chosen}
        assert in_settings or re.fullmatch(PLACE, problem.place), problem


PLACE = r"defaults|(study|job|config/train)\.yaml(:\d+)?|.*/config/(env|tasks)/\w+\.yaml(:\d+)?"


def read_back(job: JobConfig) -> JobConfig:
    """What a rank reads of it."""
    return job_config(parse_layer(dump_yaml(job.model_dump()), name="config.yaml"))


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


# Every file that comes with the project


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@examples(3)
@given(st.lists(MUTATIONS, min_size=1, max_size=3))
def test_a_mutation_of_any_study_is_a_definition_or_an_error_with_places(path: Path, mutations: list[Mutation]) -> None:
    check(study=mutated(path.read_text(), mutations))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
@examples(3)
@given(st.lists(MUTATIONS, min_size=1, max_size=3))
def test_a_mutation_of_any_configuration_is_a_job_or_an_error_with_places(
    path: Path, mutations: list[Mutation]
) -> None:
    check_job(mutated(path.read_text(), mutations))


@examples(30)
@given(SOUP)
def test_any_text_is_a_job_or_an_error_with_places(text: str) -> None:
    check_job(text)


# What is read is what stands there


def same(ours: Any, theirs: Any) -> bool:
    """Whether our value is what another parser, which knows texts alone, read at the same place."""
    if isinstance(ours, dict):
        keys = [(key, text) for key, text in zip(ours, theirs, strict=True)]
        return all(same_key(*pair) and same(ours[pair[0]], theirs[pair[1]]) for pair in keys)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    meant = theirs if isinstance(ours, str) else scalar(theirs)
    return bool(meant == ours or (isinstance(ours, float) and math.isnan(ours) and math.isnan(meant)))


def same_key(ours: str, theirs: str) -> bool:
    meant = scalar(theirs)
    return ours in (theirs, "null" if meant is None else str(meant).lower() if isinstance(meant, bool) else str(meant))


@examples(60)
@given(SOUP | st.lists(MUTATIONS, max_size=3).map(lambda mutations: mutated(STUDY, mutations)))
def test_what_is_read_is_what_another_parser_reads(text: str) -> None:
    try:
        layer = parse_layer(text, name="x")
    except ConfigError:
        return
    if not layer.problems:
        theirs = yaml.load(text, Loader=yaml.CBaseLoader) or {}
        is_empty = isinstance(theirs, str) and scalar(theirs) is None  # a file of nothing but null
        assert same(layer.values, {} if is_empty else theirs)


PLANE_0 = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])
"""JSON writes the others as two, which YAML refuses."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(PLANE_0, max_size=8), inner, max_size=4),
    max_leaves=12,
)


@examples(60)
@given(st.dictionaries(st.text(PLANE_0, max_size=8), JSON | st.text(PLANE_0, max_size=20), max_size=5))
def test_json_is_read_as_by_python(values: dict[str, Any]) -> None:
    text = json.dumps(values)
    assert parse_layer(text, name="x").values == json.loads(text)


# Bombs


def searching(*parameters: str) -> str:
    """The study with more of a search space."""
    return STUDY.replace("search_space:\n", "search_space:\n" + "".join(f"  {each}\n" for each in parameters))


BLOCKS = ("data", "optimizer", "scheduler", "training", "embedding", "distributed", "cross_validation", "output")
BOMBS = {
    "levels": "a: " + "[" * 500_000,
    "sequences": "- " * 500_000,
    "question marks": "? " * 300_000,
    "the same key": "a: 1\n" * 45_000,
    "keys": "".join(f"k{number}: 1\n" for number in range(45_000)),
    "nearly keys": "".join(f"learning_rat{number}: 1\n" for number in range(999)),
    "keys of blocks": "".join(f"{name}: {{{', '.join(f'l{n}: 1' for n in range(900))}}}\n" for name in BLOCKS),
    "keys of a block": "training:\n" + "".join(f"  epoch{number}: 1\n" for number in range(999)),
    "aliases": "a: &a 1\nb: [" + ", ".join(["*a"] * 100_000) + "]",
    "aliases of aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
    "parameters": searching(*(f"k{number}: {{int: [1, 2]}}" for number in range(990))),
    "choices": searching(*(f"model.k{n}: {{choice: [1, 2, 3, 4, 5, 6, 7, 8]}}" for n in range(800))),
    "a long choice": searching(f"seed: {{choice: [{', '.join(map(str, range(999)))}]}}"),
    "conditions": searching(*(f"k{n}: {{int: [1, 2], when: {{k{n - 1}: 1}}}}" for n in range(900))),
    "a circle": searching(*(f"k{n}: {{int: [1, 2], when: {{k{(n + 1) % 900}: 1}}}}" for n in range(900))),
    "objectives": STUDY.replace(
        "{metric: accuracy, direction: maximize}", "[" + "{metric: x, direction: maximize}, " * 900 + "]"
    ),
    "a long key": "k" * 1_000_000 + ": 1",
    "a long word": f"task: {'x' * 1_000_000}",
    "a long number": f"seed: {'9' * 1_000_000}",
    "a long fraction": f"seed: 0.{'9' * 1_000_000}",
    "a long exponent": f"seed: 1e{'9' * 1_000_000}",
    "a long duration": STUDY + f"  timeout: {'1' * 900_000}x",
    "a long text": "task: |\n" + "  x\n" * 200_000,
    "documents": "---\n" * 200_000,
    "comments": "#" * 1_000_000,
    "anchors": "".join(f"- &a{number} x\n" for number in range(70_000)),
    "spaces": "a:" + " " * 1_000_000 + "1",
    "colons": ": " * 500_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_over_within_a_second_and_little_memory(name: str) -> None:
    check(), check_job("task: embedding")  # what is imported and cached by the first is not its doing
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(BOMBS[name].encode()) <= 1 << 20
    check(study=BOMBS[name])
    between = time.process_time()
    check_job(BOMBS[name])
    assert max(between - started, time.process_time() - between) < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


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
