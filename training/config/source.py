"""YAML and JSON text to plain values, remembering the place of each.

The reading is YAML 1.2 (``1e-5`` is a float, ``no`` is a string, ``010`` is ten) and refuses what is dangerous or
ambiguous: duplicate keys and anchors, tags, documents of more than 1 MiB, 50 levels, 1,000 aliases, 10,000 values after
expanding them, or 1,000 of them in one list or mapping.
PyYAML parses; the values are built here, from its events, without recursion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_ALIASES = 1 << 20, 50, 10_000, 1000
MAX_ENTRIES = 1000
"""Of one list or mapping."""
MAX_PROBLEMS = 100
"""Mistakes of one kind that are told; what has more is no configuration, and looking at each would take minutes."""

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values of one source, and where each stands: ``places[("optimizer", "lr")] == "config/train.yaml:14"``.

    `problems` are mistakes that did not keep the rest from being read; validating the layer reports them with its own.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> str:
        """The place of `path`, of what was last written below it, or of its nearest parent that has one."""
        if path and path not in self.places:
            below = [place for other, place in self.places.items() if other[: len(path)] == path]
            if below:
                return below[-1]
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return "defaults"

    def under(self, key: str) -> Layer:
        """The part of this layer below one top-level key, as a layer of its own (empty when it is no mapping)."""
        values = self.values.get(key)
        places = {path[1:]: place for path, place in self.places.items() if path[:1] == (key,)}
        return Layer(values, places) if isinstance(values, dict) else Layer()

    def below(self, key: str) -> Layer:
        """This layer as the value of one top-level key; empty stays empty."""
        places = {(key, *path): place for path, place in self.places.items()}
        return Layer({key: self.values}, places) if self.values else Layer()


def read_layer(path: Path) -> Layer:
    """Read one YAML or JSON file (JSON is YAML 1.2). Raises ConfigError with file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([Problem(place=str(path), message=f"cannot be read: {error.strerror}")]) from error
    if len(data) > MAX_BYTES:
        raise _error(str(path), f"is larger than {MAX_BYTES} bytes; a configuration is a page, not a dataset")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(str(path), f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse_layer(text, name=str(path))


def parse_layer(text: str, *, name: str) -> Layer:
    """Parse YAML `text` whose top level is a mapping. `name` is what errors call it."""
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            builder.feed(event)
    except yaml.YAMLError as error:
        raise _syntax_error(name, text, error) from error
    except UnicodeEncodeError as error:  # half a surrogate pair, as an argument that is not UTF-8 becomes
        raise _error(name, "is not valid Unicode text") from error
    value = builder.root
    if value is None:
        return Layer({}, {(): f"{name}:1"}, builder.problems)
    if not isinstance(value, dict):
        raise _error(f"{name}:1", "the top level must be a mapping of keys to values")
    return Layer(value, builder.places, builder.problems)


def parse_setting(path: tuple[str, ...], text: str, *, name: str) -> Layer:
    """The layer of one value with the YAML `text`, as after ``--set key.path=``. Raises ConfigError."""
    read = parse_layer(f"value: {text}", name=name)
    if set(read.values) != {"value"}:
        raise _error(name, "must be one value, not several lines of keys and values")
    value = read.values["value"]
    if len(path) - 1 + _size(read.values)[1] > MAX_DEPTH:
        raise _error(name, f"nested deeper than {MAX_DEPTH} levels")
    for key in reversed(path):
        value = {key: value}
    places = {(*path, *inner[1:]): name for inner in read.places if inner}
    return Layer(value, places, [Problem(place=name, message=problem.message) for problem in read.problems])


def dump_yaml(values: Mapping[str, Any]) -> str:
    """`values` as YAML that `parse_layer` reads back unchanged."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar by the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 300 else float(text)  # an int that long always fits into a float
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text


class _Open:
    """A container being filled: its value, its path and, in a mapping, the key whose value comes next."""

    __slots__ = ("anchor", "key", "path", "value")

    def __init__(self, value: dict[str, Any] | list[Any], path: KeyPath, anchor: str | None) -> None:
        self.value, self.path, self.anchor = value, path, anchor
        self.key: str | None = None


class _Builder:
    """Builds values from parser events with an explicit stack, so depth is a rule and not a crash."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Any = None
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Any] = {}
        self._named: set[str] = set()
        """Anchors, those of lists and mappings that are still open included."""
        self._nodes = self._aliases = 0
        self._documents = 0

    def feed(self, event: yaml.Event) -> None:
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _error(f"{self.name}:{line}", "only one document per file; remove the second '---'")
            case yaml.ScalarEvent():
                self._refuse_ambiguity(event, line)
                value = scalar(event.value) if event.implicit[0] else event.value
                self._place(value, line, event.anchor, is_scalar=True)
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise _error(f"{self.name}:{line}", f"alias *{event.anchor} has no anchor before it")
                value = self._anchors[event.anchor]
                self._aliases += 1
                if self._aliases > MAX_ALIASES:
                    raise _error(f"{self.name}:{line}", f"more than {MAX_ALIASES} aliases")
                nodes, depth = _size(value)
                self._count(nodes, line)
                self._refuse_depth(depth, line)
                self._place(_copy(value), line, None, is_scalar=not isinstance(value, (dict, list)))
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._refuse_ambiguity(event, line)
                self._open({} if isinstance(event, yaml.MappingStartEvent) else [], line, event.anchor)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self._stack.pop()
                if closed.anchor:
                    self._anchors[closed.anchor] = closed.value

    def _refuse_ambiguity(self, event: Any, line: int) -> None:
        if event.anchor in self._named:
            raise _error(f"{self.name}:{line}", f"anchor &{event.anchor} is there twice; give one of them another name")
        if event.anchor:
            self._named.add(event.anchor)
        if event.tag is not None and event.tag != "!":
            raise _error(f"{self.name}:{line}", f"tag {event.tag} is not allowed; write a plain value")

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _error(f"{self.name}:{line}", f"more than {MAX_NODES} values after expanding aliases")

    def _refuse_depth(self, levels: int, line: int) -> None:
        if len(self._stack) + levels > MAX_DEPTH:
            raise _error(f"{self.name}:{line}", f"nested deeper than {MAX_DEPTH} levels")

    def _refuse_length(self, container: dict[str, Any] | list[Any], line: int) -> None:
        if len(container) >= MAX_ENTRIES:
            raise _error(f"{self.name}:{line}", f"more than {MAX_ENTRIES} entries in one list or mapping")

    def _open(self, value: dict[str, Any] | list[Any], line: int, anchor: str | None) -> None:
        self._refuse_depth(1, line)
        path = self._place(value, line, None, is_scalar=False)
        self._stack.append(_Open(value, path, anchor))

    def _place(self, value: Any, line: int, anchor: str | None, *, is_scalar: bool) -> KeyPath:
        """Put `value` where the parser is; returns its path (its own key, when it is one)."""
        self._count(1, line)
        if anchor:
            self._anchors[anchor] = value
        if not self._stack:
            self.root = value
            self.places[()] = f"{self.name}:{line}"
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            path = (*top.path, len(top.value))
            self._refuse_length(top.value, line)
            top.value.append(value)
        elif top.key is None:
            return self._read_key(top, value, line, is_scalar)
        else:
            path = (*top.path, top.key)
            top.value[top.key] = value
            top.key = None
            self.places.setdefault(path, f"{self.name}:{line}")
            return path
        self.places[path] = f"{self.name}:{line}"
        return path

    def _read_key(self, top: _Open, value: Any, line: int, is_scalar: bool) -> KeyPath:
        place = f"{self.name}:{line}"
        if not is_scalar:
            raise _error(place, "a key must be a plain word, not a list or a mapping")
        key = value if isinstance(value, str) else _key_text(value)
        if isinstance(top.value, dict) and key in top.value:
            before = self.places.get((*top.path, key), self.name)
            if len(self.problems) == MAX_PROBLEMS:
                raise ConfigError([*self.problems, Problem(place=place, message="too many keys stand twice")])
            self.problems.append(
                Problem(place=place, message=f"key '{key}' stands twice (first at {before}); keep one")
            )
        self._refuse_length(top.value, line)
        self.places[(*top.path, key)] = place
        top.key = key
        return (*top.path, key)


def _key_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _size(value: Any) -> tuple[int, int]:
    """Number of values in `value`, itself included, and of containers around the innermost one."""
    nodes, depth = 0, 0
    stack = [(value, 0)]
    while stack:
        item, outer = stack.pop()
        nodes, depth = nodes + 1, max(depth, outer)
        if isinstance(item, (dict, list)):
            depth = max(depth, outer + 1)
            stack.extend((inner, outer + 1) for inner in (item.values() if isinstance(item, dict) else item))
    return nodes, depth


def _copy(value: Any) -> Any:
    """A copy that shares nothing, so one layer can be changed without another (depth is bounded by the parser)."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _error(place: str, message: str) -> ConfigError:
    return ConfigError([Problem(place=place, message=message)])


def _syntax_error(name: str, text: str, error: yaml.YAMLError) -> ConfigError:
    if isinstance(error, yaml.reader.ReaderError):  # a character; it knows the byte and no line
        line = text.encode()[: error.position].count(b"\n") + 1
        return _error(f"{name}:{line}", f"not valid YAML: {str(error).splitlines()[0]}")
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}" if mark else name
    return _error(place, f"not valid YAML: {getattr(error, 'problem', None) or error}")


class _Dumper(yaml.CSafeDumper):
    """Writes floats and look-alike strings so that a YAML 1.2 reader gets back the very same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if not isinstance(scalar(text), str) else None
    if "\x85" in text:  # YAML 1.1 folds this line break away unless it is escaped
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_float(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:  # PyYAML's own 1.1 resolver wants the dot, or writes a tag
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(float, _represent_float)
