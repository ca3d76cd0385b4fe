"""The sources of installed packages: found, read and parsed, never imported, so nothing of theirs is run.

What all built-in text data sets are made of. Same packages, same Python: same files in the same order.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from training.versions import version_of

DEFAULT_PACKAGES = ("torch", "numpy", "sklearn", "pandas", "scipy", "sqlalchemy")
MASK = "library"
"""Stands in a text where the name of a package was."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
# Tests and other people's code do not document the package. torch's private folders are its compiler's: notes that no
# user of torch reads.
_SKIPPED = re.compile(r"^torch/_[^/]+/|/(?:_?tests?|_?testing|externals|_?vendor\w*|array_api_\w+)/")


def package_versions(packages: Sequence[str] = DEFAULT_PACKAGES) -> dict[str, str]:
    """The version of each package that is installed; '?' when it has no metadata. Reads no source."""
    return {package: version_of(_DISTRIBUTIONS.get(package, package)) for package in package_roots(packages)}


def package_roots(packages: Sequence[str]) -> dict[str, Path]:
    """The folder of each installed package, by its top-level import name. Finding one does not execute it."""
    specs = {package: importlib.util.find_spec(package) for package in packages}
    return {
        package: Path(spec.origin).parent
        for package, spec in specs.items()
        if spec is not None and spec.origin and spec.submodule_search_locations
    }


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module below `root`, files in sorted order, without tests and vendored code."""
    paths = (path.relative_to(root.parent) for path in root.rglob("*.py"))
    for path in sorted(path for path in paths if not _SKIPPED.search(path.as_posix())):
        yield ".".join(path.with_suffix("").parts).removesuffix(".__init__"), root.parent / path


def share_of_documentation(source: bytes) -> float:
    """The part of a file between triple quotes, in bytes: tells what is worth parsing in a thousandth of the time."""
    quoted = (sum(map(len, source.split(quotes)[1::2])) for quotes in (b'"""', b"'''"))
    return max(quoted) / max(1, len(source))


def syntax_tree(source: bytes) -> ast.Module | None:
    """None for what this Python cannot parse, such as a template or newer syntax."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


@contextmanager
def fast_and_silent() -> Iterator[None]:
    """Parse many files inside of it: with no garbage collection, and no warnings about other people's code."""
    # Syntax trees are millions of small objects in no cycle: the collector finds nothing and costs a third of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            yield
    finally:
        if was_enabled:
            gc.enable()
