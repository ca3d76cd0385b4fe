"""`api_docs`: public APIs of installed packages, each paired with the first sentence of its docstring.

Pairs for contrastive training that every machine of this project already has on disk: given
`DataFrame.set_index(keys, drop, append, inplace, verify_integrity)`, find "Set the DataFrame index using existing
columns". Same packages, same Python, same rows in the same order.

Public is what has no leading underscore and stands in a public module, or in a private one that declares it in
``__all__`` or from which the ``__init__.py`` of a public package imports it.

What makes the search honest: each sentence has one right answer. A sentence that stands under several APIs and a
signature that has several sentences are dropped, all of them. A package's own name in its sentences is masked, since it
tells where an API lives and not what it does; the name of another package ("convert to a NumPy array") is meaning and
stays. Signatures are the names of parameters without types and defaults, which would take most of the tokens.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

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

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

MIN_DOCUMENTATION = 0.1
"""Share of a file between triple quotes. The files below it cost a fifth of the parsing time for 3% of the pairs."""
MIN_WORDS = 4
MIN_LETTERS = 0.8
"""Share of letters among the characters of a sentence that are not spaces; formulas have fewer."""

_HIDDEN = {"overload", "deprecated", "setter", "deleter"}
"""Decorators of what is no API of its own, or no longer one."""
_PROPERTY = re.compile(r"property$|^cache_readonly$|^memoized_attribute$")

_DEFINED = re.compile(r"^(?:class|(?:async )?def) (\w+)", re.MULTILINE)

_SPELLINGS = {
    "numpy": r"numpy|\bnp\b(?=\.)",
    "pandas": r"pandas|\bpd\b(?=\.)",
    "sklearn": r"sklearn|scikit[-_ ]learn",
}
"""How a package is called in its own documentation where that is not its import name alone."""

_BLANK = re.compile(r"\n[ \t]*\n")
_SIGNATURE = re.compile(r"\s*[\w.]+\(.*\)(?:\s*->.*)?\s*", re.DOTALL)
_NOT_PROSE = re.compile(
    r"^\s*(?:[-*+•]\s|\d+[.)]\s|:\w[^:`]*:\s|@\w|\.\.\s|>>>|\w+ : |[A-Z][\w ]*:{1,2}\s*$|.*\n\s*[-=~^]{3,}\s*$)",
    re.MULTILINE,
)
"""Where a list, a field, a directive, an example or a heading begins."""
_REFERENCE = re.compile(r"(?::[\w:+-]+:)?(?<!`)`[~!]?([^`<]+)[^`]*`_{0,2}")
_FOOTNOTE = re.compile(r"\s*\[[\w#*]+\]_")
_MODULES = re.compile(r"^\.?(?:[a-z_]\w*\.)*(?=\w)")
_MARKUP = re.compile(r"`+|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)")
_ABBREVIATIONS = ("e\\.g", "i\\.e", "w\\.r\\.t", "vs", "cf", "etc", "resp", "approx", "al")
_END = re.compile("".join(rf"(?<!\b{each})" for each in _ABBREVIATIONS) + r"[.!?](?=\s|$)")
_UNFIT = re.compile(
    r"deprecat|\\|[{}|$]|%\(|://|\.\.|:$|\bnon-public\b|\babstract method\b|\bis an alias\b"
    r"|^(?:see|same as|alias|refer|internal|for internal|todo|note|we)\b",
    re.IGNORECASE,
)
"""What makes a sentence no description: code, formulas, templates, pointers to others, notes of the authors."""


class Api(NamedTuple):
    """One row."""

    text: str
    pair: str
    group: str
    label: str


class Exports(NamedTuple):
    """What the ``__init__.py`` of the public packages import, and thereby make public."""

    names: set[str]
    modules: set[str]
    """Those of which they import all."""


def read_api_docs(packages: Sequence[str] = DEFAULT_PACKAGES) -> dict[str, list[str]]:
    """The columns text (signature), pair (sentence), group (dotted module) and label (package), of equal length.

    `packages` are top-level import names; those not installed are left out. Raises DataError when none of them has an
    API to read.
    """
    with fast_and_silent():
        apis = [api for package, root in package_roots(packages).items() for api in _apis(package, root)]
    apis = _with_one_answer(apis)
    if not apis:
        raise DataError(
            f"data.name: api_docs found no documented API in {', '.join(packages)}; install one, or name other data"
        )
    return {column: list(values) for column, values in zip(Api._fields, zip(*apis, strict=True), strict=True)}


def _with_one_answer(apis: list[Api]) -> list[Api]:
    """Those whose text and pair both occur once."""
    texts = Counter(_normalised(api.text) for api in apis)
    pairs = Counter(_normalised(api.pair) for api in apis)
    return [api for api in apis if texts[_normalised(api.text)] == pairs[_normalised(api.pair)] == 1]


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _apis(package: str, root: Path) -> Iterator[Api]:
    mask = re.compile(rf"\w*(?:{_SPELLINGS.get(package, re.escape(package))})\w*", re.IGNORECASE)
    exports = _exports(root)
    for module, path in modules(root):
        if path.name == "conftest.py":
            continue
        for text, docstring in documented(_public_definitions(path.read_bytes(), module, exports)):
            sentence = first_sentence(docstring)
            if sentence:
                yield Api(text, mask.sub(MASK, sentence), module, package)


def _exports(root: Path) -> Exports:
    exports = Exports(set(), set())
    for package, path in modules(root):
        if path.name == "__init__.py" and not _is_private(package):
            tree = syntax_tree(path.read_bytes())
            for node in [] if tree is None else ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    names = {alias.name for alias in node.names}
                    exports.names.update(names)
                    exports.modules.update({_source(node, package)} if "*" in names else ())
    return exports


def _source(node: ast.ImportFrom, package: str) -> str:
    """The module that an import in the ``__init__.py`` of `package` names."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


def _is_private(module: str) -> bool:
    return "._" in module


def _public_definitions(source: bytes, module: str, exports: Exports) -> list[Definition]:
    """The classes and functions of a module that are for users, by its ``__all__`` and by `exports`.

    Without ``__all__`` it is all of a module that is public itself, or that a public package imports all of.
    """
    if not _is_worth_parsing(source, module, exports):
        return []
    tree = syntax_tree(source)
    definitions = [] if tree is None else [node for node in tree.body if isinstance(node, Definition)]
    declared = set() if tree is None else _declared(tree)
    if not declared and (module in exports.modules or not _is_private(module)):
        return definitions
    if _is_private(module.rpartition(".")[0]) and module not in exports.modules:
        declared = set()  # it declares for the private package that it stands in
    return [node for node in definitions if node.name in exports.names | declared]


def _is_worth_parsing(source: bytes, module: str, exports: Exports) -> bool:
    if share_of_documentation(source) < MIN_DOCUMENTATION:
        return False
    if not _is_private(module) or module in exports.modules or b"__all__" in source:
        return True
    return not exports.names.isdisjoint(_DEFINED.findall(source.decode(errors="replace")))


def _declared(tree: ast.Module) -> set[str]:
    """The names written out in ``__all__``."""
    return {
        name.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
        for name in ast.walk(node.value)
        if isinstance(name, ast.Constant) and isinstance(name.value, str)
    }


def documented(definitions: Iterable[ast.stmt], owner: str = "") -> Iterator[tuple[str, str]]:
    """Signature and docstring of the public ones of `definitions`, and of what is public in their classes.

    `owner` is the class they stand in.
    """
    for node in definitions:
        if isinstance(node, Definition) and not node.name.startswith("_") and not _HIDDEN & _decorators(node):
            name = f"{owner}.{node.name}" if owner else node.name
            yield name + _parameters(node, is_method=bool(owner)), ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from documented(node.body, name)


def _decorators(node: Definition) -> set[str]:
    """Their names, without the modules they come from and the arguments they are called with."""
    called = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return {ast.unparse(each).rpartition(".")[2] for each in called}


def _parameters(node: Definition, *, is_method: bool) -> str:
    """`(right, how, *args)` without private ones; '' for a property, and a class with no constructor of its own."""
    if isinstance(node, ast.ClassDef):
        constructors = (each for each in node.body if isinstance(each, Function) and each.name == "__init__")
        constructor = next(constructors, None)
        return "" if constructor is None else _parameters(constructor, is_method=True)
    decorators = _decorators(node)
    if any(map(_PROPERTY.search, decorators)):
        return ""
    given = node.args
    positional = [*given.posonlyargs, *given.args][is_method and "staticmethod" not in decorators :]
    named, keywords = ([each.arg for each in some if each.arg[0] != "_"] for some in (positional, given.kwonlyargs))
    rest = [f"*{given.vararg.arg.lstrip('_')}"] if given.vararg else []
    rest_keywords = [f"**{given.kwarg.arg.lstrip('_')}"] if given.kwarg else []
    return f"({', '.join([*named, *rest, *keywords, *rest_keywords])})"


def first_sentence(docstring: str) -> str:
    """The first sentence as plain text in one line, without its full stop; '' where there is none that says something.

    A signature before it is passed over.
    """
    blocks = (block for block in _BLANK.split(docstring.strip()) if not _SIGNATURE.fullmatch(block))
    prose = _NOT_PROSE.split(next(blocks, ""), maxsplit=1)[0]
    sentence = _END.split(_plain(prose), maxsplit=1)[0].rstrip(". ")
    return sentence if _says_something(sentence) else ""


def _plain(text: str) -> str:
    text = _REFERENCE.sub(_reference, text)
    return " ".join(_MARKUP.sub("", _FOOTNOTE.sub("", text)).split())


def _reference(markup: re.Match[str]) -> str:
    """What a reader sees of a reference: its title, else its target without the modules."""
    title = markup[1].strip()
    return title if " " in title else _MODULES.sub("", title)


def _says_something(sentence: str) -> bool:
    gaps = sentence.count(" ")
    letters = sum(map(str.isalpha, sentence))
    return gaps >= MIN_WORDS - 1 and letters >= MIN_LETTERS * (len(sentence) - gaps) and not _UNFIT.search(sentence)
