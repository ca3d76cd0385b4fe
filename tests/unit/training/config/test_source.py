"""Reading YAML 1.2 with the place of each value, refusing what is dangerous, and writing it back unchanged."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from training.config import dump_yaml, parse_layer, read_layer
from training.config.source import MAX_BYTES, MAX_DEPTH, MAX_NODES, Layer
from training.errors import ConfigError


def parse(text: str) -> dict[str, Any]:
    layer = parse_layer(text, name="study.yaml")
    assert layer.problems == []
    return layer.values


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_layer(text, name="study.yaml")
    return str(caught.value)


# YAML 1.2, not 1.1


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1.5e+3", 1500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("010", 10),
        ("-3", -3),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1e", "1e"),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("''", ""),
    ],
)
def test_plain_scalars_are_read_as_yaml_1_2(written: str, value: object) -> None:
    read = parse(f"key: {written}")["key"]
    assert read == value and type(read) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(parse("key: .nan")["key"])


def test_an_int_of_any_length_is_a_finite_int_or_an_infinite_float() -> None:
    assert parse(f"key: {'9' * 299}")["key"] == 10**299 - 1
    assert float(parse(f"key: {'9' * 299}")["key"]) < math.inf
    assert parse(f"key: {'9' * 5000}")["key"] == math.inf


def test_keys_are_always_strings() -> None:
    assert parse("010: a\n1.5: b\ntrue: c\n~: d\n'x y': e\n") == {
        "10": "a",
        "1.5": "b",
        "true": "c",
        "null": "d",
        "x y": "e",
    }


def test_json_is_read_like_yaml() -> None:
    value = {"a": [1, 2.5, "no", None, True, {"b": "1e-5"}], "c": {}}
    assert parse(json.dumps(value, indent=2)) == value


def test_an_empty_text_is_an_empty_layer() -> None:
    for text in ("", "# only a comment\n", "---\n", "null\n"):
        assert parse(text) == {}


def test_a_byte_order_mark_and_windows_lines_change_nothing() -> None:
    layer = parse_layer("\ufeffa: 1\r\nb: {c: 2}\r\n", name="f")
    assert layer.values == {"a": 1, "b": {"c": 2}}
    assert layer.places[("b", "c")] == "f:2"


# Places


def test_every_key_and_item_knows_its_line() -> None:
    text = "a:\n  b: 1\n\n  # comment\n  c:\n    - x\n    - d: 2\ne: {f: [1,\n  2]}\n"
    places = parse_layer(text, name="f").places
    assert places == {
        (): "f:1",
        ("a",): "f:1",
        ("a", "b"): "f:2",
        ("a", "c"): "f:5",
        ("a", "c", 0): "f:6",
        ("a", "c", 1): "f:7",
        ("a", "c", 1, "d"): "f:7",
        ("e",): "f:8",
        ("e", "f"): "f:8",
        ("e", "f", 0): "f:8",
        ("e", "f", 1): "f:9",
    }


def test_what_has_no_place_of_its_own_has_its_parents() -> None:
    layer = parse_layer("\n\na:\n  b: 1\n", name="f")
    assert layer.place_of(("a", "b", "missing")) == "f:4"
    assert layer.place_of(("missing",)) == "f:3"
    assert parse_layer("", name="f").place_of(("missing",)) == "f:1"
    assert Layer().place_of(("missing",)) == "defaults"


def test_a_section_written_only_through_its_keys_is_where_the_last_of_them_is() -> None:
    layer = Layer({"a": {"b": 1, "c": 2}}, {("a", "b"): "x:1", ("a", "c"): "--set a.c=2"})
    assert layer.place_of(("a",)) == "--set a.c=2"


def test_a_part_of_a_layer_keeps_its_places() -> None:
    layer = parse_layer("x: 1\na:\n  b:\n    c: 1\n", name="f")
    part = layer.under("a")
    assert part.values == {"b": {"c": 1}}
    assert part.places == {(): "f:2", ("b",): "f:3", ("b", "c"): "f:4"}
    assert part.below("a").place_of(("a", "b", "c")) == "f:4"


def test_the_part_below_what_is_no_mapping_is_empty() -> None:
    layer = parse_layer("a: [1]\n", name="f")
    assert layer.under("a").values == layer.under("missing").values == {}
    assert layer.under("a").below("a").values == {}


# Mistakes


def test_a_duplicate_key_is_a_problem_with_both_places() -> None:
    layer = parse_layer("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n", name="f")
    assert [str(problem) for problem in layer.problems] == [
        "f:5: key 'c' stands twice (first at f:3); keep one",
        "f:6: key 'a' stands twice (first at f:1); keep one",
    ]


def test_keys_that_read_the_same_are_duplicates() -> None:
    assert len(parse_layer("010: a\n10: b\n'10': c\n", name="f").problems) == 2


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system ['true']", "a: !!str 5", "a: !own {b: 1}", "%TAG ! tag:x,2000:\n---\na: !b 1"],
)
def test_a_tag_is_refused_where_it_stands(text: str) -> None:
    assert refusal(f"{text}\n").startswith(f"study.yaml:{text.count(chr(10)) + 1}: tag ")


def test_a_second_document_is_refused_where_it_begins() -> None:
    assert refusal("a: 1\n---\nb: 2\n") == "study.yaml:2: only one document per file; remove the second '---'"


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n", "5\n"])
def test_a_top_level_that_is_no_mapping_is_refused(text: str) -> None:
    assert refusal(text) == "study.yaml:1: the top level must be a mapping of keys to values"


@pytest.mark.parametrize("text", ["a: 1\n? [b]\n: 2\n", "a: 1\n? {b: 1}\n: 2\n"])
def test_a_key_that_is_no_word_is_refused(text: str) -> None:
    assert refusal(text) == "study.yaml:2: a key must be a plain word, not a list or a mapping"


@pytest.mark.parametrize("text", ["a: 1\nb: *nothing\n", "a: 1\nb: &b [*b]\n"])
def test_an_alias_without_an_anchor_before_it_is_refused(text: str) -> None:
    assert "study.yaml:2: alias *" in refusal(text)


@pytest.mark.parametrize("text", ["a: &x 1\nb: &x 2\n", "a: 1\nb: &x [1, &x 2]\n", "&x a: 1\nb: &x {}\n"])
def test_an_anchor_that_is_there_twice_is_refused(text: str) -> None:
    assert refusal(text) == "study.yaml:2: anchor &x is there twice; give one of them another name"


def test_a_syntax_error_says_its_line_once() -> None:
    text = refusal("a: 1\nb: [1, 2\nc: 3\n")
    assert text.startswith("study.yaml:3: not valid YAML: ")
    assert "\n" not in text


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x80", "\ufffe"])
def test_a_control_character_is_refused_with_its_line(character: str) -> None:
    text = refusal(f"a: 1\nb: é\nc: {character}\n")
    assert text.startswith("study.yaml:3: not valid YAML: unacceptable character")
    assert "\n" not in text


def test_half_a_surrogate_pair_is_refused() -> None:
    assert refusal("a: \udc80") == "study.yaml: is not valid Unicode text"


# Bombs


def test_depth_is_refused_beyond_its_limit_and_not_before() -> None:
    deepest = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert "a" in parse(deepest)
    assert refusal("\na: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH).startswith("study.yaml:2: nested deeper")


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "- " * 20_000])
def test_twenty_thousand_levels_are_refused_quickly(text: str) -> None:
    started = time.perf_counter()
    assert "nested deeper than 50 levels" in refusal(f"a:\n  {text}")
    assert time.perf_counter() - started < 2.0


def test_aliases_are_expanded_into_values_of_their_own() -> None:
    values = parse("a: &a {x: [1]}\nb: *a\nc: &s text\nd: [*s, *a]\n")
    assert values == {"a": {"x": [1]}, "b": {"x": [1]}, "c": "text", "d": ["text", {"x": [1]}]}
    values["b"]["x"].append(2)
    assert values["a"] == {"x": [1]} == values["d"][1]


def test_an_alias_bomb_in_width_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
    started = time.perf_counter()
    assert f"more than {MAX_NODES} values after expanding aliases" in refusal("\n".join(lines))
    assert time.perf_counter() - started < 2.0


def test_an_alias_bomb_in_depth_is_refused() -> None:
    lines = ["a0: &a0 x"]
    lines += [f"a{level}: &a{level} {'[' * 40}*a{level - 1}{']' * 40}" for level in range(1, 60)]
    assert refusal("\n".join(lines)).startswith("study.yaml:3: nested deeper than 50 levels")


# Files


def test_a_file_is_read_with_its_path_as_place(tmp_path: Path) -> None:
    path = tmp_path / "a file's name.yaml"
    path.write_text("a: é\n", encoding="utf-8")
    layer = read_layer(path)
    assert (layer.values, layer.place_of(("a",))) == ({"a": "é"}, f"{path}:1")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError) as caught:
        read_layer(path)
    assert str(caught.value) == f"{path}: is not UTF-8 text (byte 8); save it as UTF-8"


def test_a_large_file_is_refused_and_one_at_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: 1\n#" + b"x" * (MAX_BYTES - 6))
    assert read_layer(path).values == {"a": 1}
    path.write_bytes(b"a: 1\n#" + b"x" * (MAX_BYTES - 5))
    with pytest.raises(ConfigError, match=f"is larger than {MAX_BYTES} bytes"):
        read_layer(path)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_layer(path)
        assert str(caught.value) == f"{path}: cannot be read: {reason}"


# Writing

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""
TRICKY = [
    *("no", "1e-5", "1E5", "010", "0x1f", "12:30:45", "~", "", "null", "Null", "true", "FALSE"),
    *(".nan", "-.inf", "+.INF", "nan", "a: b", "a #b", "# a", "- a", "-", "---", "...", "?", "? a", "!x", "&a"),
    *("*a", "%a", "@a", "`a", "|", ">", "<<", "=", "'", '"', "\\", "{a", "[a", "a, b", ",", " a", "a ", "\t", "a\tb"),
    *("\n", "a\nb", "a\n\nb\n", "\n a", "a\n ", "a\r\nb", "a\rb", "\x85", "a\x85b", "\u2028", "a\u2029b"),
    *("\ufeff", "\x00", "\x07", "\x7f", "é", "😀", "word " * 60, "x" * 5000),
]
TEXTS = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SCALARS = st.none() | st.booleans() | st.integers(-(10**200), 10**200) | st.floats() | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=12)


def same(read: Any, written: Any) -> bool:
    """Equal in type and value; a NaN is equal to a NaN and -0.0 is not 0.0."""
    if type(read) is not type(written):
        return False
    if isinstance(written, dict):
        return list(read) == list(written) and all(same(read[key], written[key]) for key in written)
    if isinstance(written, list):
        return len(read) == len(written) and all(map(same, read, written))
    if isinstance(written, float):
        return repr(read) == repr(written)
    return bool(read == written)


@PATIENT
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
@example({text: text for text in TRICKY})
@example({"a": [math.inf, -math.inf, math.nan, -0.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308]})
@example({"long key " * 30: {"multi\nline": [[], {}, [[]], {"": {}}]}})
def test_what_is_written_is_read_back_unchanged(values: dict[str, Any]) -> None:
    text = dump_yaml(values)
    assert same(parse(text), values), text


def test_what_is_written_keeps_its_order_and_stays_on_few_lines() -> None:
    assert dump_yaml({"b": 1e-5, "a": {"no": "no", "list": [1, 2]}}) == (
        "b: 1.0e-05\na:\n  'no': 'no'\n  list:\n  - 1\n  - 2\n"
    )
