"""`package_docs`: paragraphs of documentation, labelled by the installed package they document.

A text data set that every machine of this project already has on disk. The packages' sources are parsed, never
imported. Their own names are masked, so a model has to learn the subject and not the name; what two packages share
word for word (vendored code) is left out, because it has no one right label. Same packages, same Python, same rows in
the same order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.errors import DataError
from training.package_sources import (
    DEFAULT_PACKAGES,
    MASK,
    fast_and_silent,
    modules,
    package_roots,
    share_of_documentation,
    syntax_tree,
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

MIN_CHARS = 40
MIN_WORDS = 6
MIN_LETTERS = 0.85
"""Share of letters among the characters of a paragraph that are not spaces; code and tables have fewer."""
MIN_DOCUMENTATION = 0.25
"""Share of a file between triple quotes. The files below it cost half of the parsing time for an eighth of the text."""

_NAMES = ("torch", "numpy", "scikit-learn", "scikit_learn", "scikit learn", "sklearn", "pandas", "scipy", "sqlalchemy")
_OWN_NAME = re.compile(rf"\w*(?:{'|'.join(_NAMES)})\w*|\b(?:np|pd)\b(?=\.)", re.IGNORECASE)
_ROLE = re.compile(r":[\w:+-]+:`[~!]?([^`<]*)[^`]*`")
_BLANK = re.compile(r"\n[ \t]*\n")
_CODE = re.compile(r"^\s*(?:>>>|\.\.\. |In \[\d)|\|.*\|", re.MULTILINE)
_UNDERLINE = re.compile(r"\s*[-=~^*+#.\"'`\s]{3,}$")
_HEADER = re.compile(r"\s*(?:\.\.(?:\s.*)?|[\w*`'\", .\[\]-]+\s:(?:\s.*)?|[A-Z][\w ]*:{1,2}|[\w*]+(?:, [\w*]+)*)$")
_ITEM = re.compile(r"\s*(?::\w[^:`]*:(?=\s|$)|[*\w]+ \([^)]*\):|[*\w.]+:(?= )|[-*+•](?= )|\(?\d+[.)](?= ))\s*")


def read_package_docs(packages: Sequence[str] = DEFAULT_PACKAGES) -> tuple[list[str], list[str], list[str]]:
    """Texts, labels (the package) and groups (the dotted module), of equal length, package by package.

    `packages` are top-level import names; those not installed are left out. Raises DataError when fewer than two of
    them have documentation to read: with one there is nothing to tell apart.
    """
    owners: dict[str, str | None] = {}
    groups: dict[str, str] = {}
    with fast_and_silent():
        for package, root in package_roots(packages).items():
            for module, text in _texts(root):
                groups.setdefault(text, module)
                owners[text] = package if owners.get(text, package) == package else None
    texts = [text for text, owner in owners.items() if owner is not None]
    labels = [str(owners[text]) for text in texts]
    _check(labels, packages)
    return texts, labels, [groups[text] for text in texts]


def _check(labels: list[str], packages: Sequence[str]) -> None:
    found = sorted(set(labels))
    if len(found) < 2:
        raise DataError(
            f"data.name: package_docs needs the documentation of two packages or more, found"
            f" {', '.join(found) or 'none'} of {', '.join(packages)}; install another of them, or name other data"
        )


def _texts(root: Path) -> Iterator[tuple[str, str]]:
    """Dotted module and text of every paragraph below `root`, files in sorted order."""
    for module, path in modules(root):
        source = path.read_bytes()
        if share_of_documentation(source) >= MIN_DOCUMENTATION:
            for docstring in docstrings(source):
                yield from ((module, text) for text in paragraphs(docstring))


def docstrings(source: bytes) -> Iterator[str]:
    """The cleaned docstrings of a module, its classes and functions (not of functions in functions).

    Yields none for what this Python cannot parse, such as a template or newer syntax.
    """
    tree = syntax_tree(source)
    for node in [] if tree is None else _documented(tree):
        yield ast.get_docstring(node) or ""


def _documented(node: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child


def paragraphs(docstring: str) -> Iterator[str]:
    """The prose of a docstring: one line each, names masked, no examples, tables, headings or parameter headers."""
    for block in _BLANK.split(docstring):
        if not _CODE.search(block):
            for lines in _pieces(block):
                text = _normalise(" ".join(lines))
                if _is_prose(text):
                    yield _mask(text)


def _pieces(block: str) -> Iterator[list[str]]:
    """The lines of a block, parted where a heading, a parameter's header or a list item starts."""
    piece: list[str] = []
    for line in block.splitlines():
        item = _ITEM.match(line)
        if _UNDERLINE.fullmatch(line):
            piece.clear()  # the line above it was a title
        elif _HEADER.fullmatch(line):
            yield piece
            piece = []
        elif item:
            yield piece
            piece = [line[item.end() :]]
        else:
            piece.append(line)
    yield piece


def _normalise(text: str) -> str:
    if "`" in text:
        text = _ROLE.sub(r"\1", text).replace("`", "")
    return " ".join(text.split())


def _mask(text: str) -> str:
    lowered = text.lower()
    # The pattern is slow, and most texts have no name in them.
    has_name = any(name in lowered for name in (*_NAMES, "np.", "pd."))
    return _OWN_NAME.sub(MASK, text) if has_name else text


def _is_prose(text: str) -> bool:
    gaps = text.count(" ")
    if len(text) < MIN_CHARS or gaps < MIN_WORDS - 1:
        return False
    return sum(map(str.isalpha, text)) >= MIN_LETTERS * (len(text) - gaps)
