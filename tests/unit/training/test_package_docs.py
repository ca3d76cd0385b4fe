"""Documentation of installed packages: what is read, what is left out, and that nothing of theirs is run."""

from __future__ import annotations

import gc
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from training.errors import DataError
from training.package_docs import docstrings, paragraphs, read_package_docs
from training.package_sources import package_versions

PROSE = "The quick brown fox jumps over the lazy dog and does so every day."
OTHER = "A slow green turtle walks around the busy cat without any hurry at all."


def install(site: Path, module: str, *texts: str, code: str = "") -> None:
    """Write the file of `module`, such as ``fox_package/deep.py``, with `texts` in its docstring."""
    path = site / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"""' + "\n\n".join(texts) + f'\n"""\n{code}', encoding="utf-8")


def prose_of(docstring: str) -> list[str]:
    return list(paragraphs(docstring))


def test_paragraphs_carry_their_package_and_module_in_sorted_order(site: Path) -> None:
    install(site, "turtle_package/__init__.py", OTHER)
    install(site, "fox_package/__init__.py", PROSE)
    install(site, "fox_package/sub/__init__.py", PROSE + " Even on Sundays.")
    install(site, "fox_package/a.py", PROSE + " Even at night.")
    texts, labels, groups = read_package_docs(["turtle_package", "fox_package"])
    assert texts == [OTHER, PROSE, PROSE + " Even at night.", PROSE + " Even on Sundays."]
    assert labels == ["turtle_package", "fox_package", "fox_package", "fox_package"]
    assert groups == ["turtle_package", "fox_package", "fox_package.a", "fox_package.sub"]


def test_packages_are_never_executed(site: Path, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    for name, text in (("fox_package", PROSE), ("turtle_package", OTHER)):
        install(site, f"{name}/__init__.py", text, code=f"open({str(witness)!r}, 'w')")
    assert len(read_package_docs(["fox_package", "turtle_package"])[0]) == 2
    assert not witness.exists()


def test_tests_and_vendored_code_are_left_out(site: Path) -> None:
    install(site, "fox_package/__init__.py", PROSE)
    install(site, "turtle_package/__init__.py", OTHER)
    for number, name in enumerate(["tests", "test", "_testing", "externals", "_vendor", "array_api_compat"]):
        install(site, f"fox_package/{name}/a.py", f"{PROSE} Number {'x' * number}.")
    assert read_package_docs(["fox_package", "turtle_package"])[0] == [PROSE, OTHER]


def test_a_text_is_kept_once_and_one_of_two_packages_not_at_all(site: Path) -> None:
    shared = "This sentence was copied from one package into the other one."
    install(site, "fox_package/__init__.py", PROSE, shared, PROSE)
    install(site, "turtle_package/__init__.py", OTHER, shared, shared)
    texts, labels, _ = read_package_docs(["fox_package", "turtle_package"])
    assert (texts, labels) == ([PROSE, OTHER], ["fox_package", "turtle_package"])


def test_files_are_read_in_sorted_order_and_a_repeated_text_belongs_to_the_first(site: Path) -> None:
    names = [*"qzkabmxrfw"]
    for name in names:
        install(site, f"fox_package/{name}.py", f"{PROSE} In the file {name * 3}.", PROSE)
    install(site, "fox_package/__init__.py", OTHER + " Of course.")
    install(site, "turtle_package/__init__.py", OTHER)
    texts, _, groups = read_package_docs(["fox_package", "turtle_package"])
    assert groups[texts.index(PROSE)] == "fox_package.a"
    files = [group for group, text in zip(groups, texts, strict=True) if "In the file" in text]
    assert files == [f"fox_package.{name}" for name in sorted(names)]


def test_private_folders_are_left_out_of_torch_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    install(site, "torch/__init__.py", PROSE)
    install(site, "torch/_compiler/a.py", PROSE + " In private.")
    install(site, "fox_package/__init__.py", OTHER)
    install(site, "fox_package/_core/a.py", OTHER + " In private.")
    assert read_package_docs(["torch", "fox_package"])[2] == ["torch", "fox_package", "fox_package._core.a"]


def test_a_text_shared_by_three_packages_is_left_out(site: Path) -> None:
    shared = "This sentence was copied from one package into the two others."
    for name, text in (("fox_package", PROSE), ("turtle_package", OTHER), ("third_package", PROSE + " Really.")):
        install(site, f"{name}/__init__.py", text, shared)
    assert shared not in read_package_docs(["fox_package", "turtle_package", "third_package"])[0]


def test_a_package_that_is_not_installed_is_left_out_and_one_alone_refused(site: Path) -> None:
    install(site, "fox_package/__init__.py", PROSE)
    install(site, "turtle_package/__init__.py", OTHER)
    (site / "bare_folder").mkdir()
    packages = ["fox_package", "no_such_package", "bare_folder", "turtle_package"]
    assert set(read_package_docs(packages)[1]) == {"fox_package", "turtle_package"}
    assert package_versions(packages) == {"fox_package": "?", "turtle_package": "?"}
    with pytest.raises(DataError, match="two packages or more, found fox_package of fox_package, no_such_package"):
        read_package_docs(["fox_package", "no_such_package"])
    with pytest.raises(DataError, match="found none of"):
        read_package_docs([])


def test_files_that_cannot_be_parsed_are_passed_over(site: Path) -> None:
    install(site, "fox_package/__init__.py", PROSE)
    install(site, "fox_package/template.py", OTHER, code="def {{ name }}(): pass")
    (site / "fox_package" / "binary.py").write_bytes(b'"""' + b"\xff\x00" * 50 + b'"""')
    (site / "fox_package" / "empty.py").write_bytes(b"")
    install(site, "turtle_package/__init__.py", OTHER + " Yes.", code="pattern = '\\d'")  # an invalid escape: warns
    assert len(read_package_docs(["fox_package", "turtle_package"])[0]) == 2


def test_the_garbage_collector_is_on_again_after_an_error() -> None:
    with pytest.raises(DataError):
        read_package_docs([])
    assert gc.isenabled()


def test_docstrings_come_from_modules_classes_and_functions_only() -> None:
    source = b'''
"""module"""
constant = """no docstring"""
class A:
    """class"""
    async def method(self):
        """method"""
        def inner():
            """inner"""
def function():
    """function"""
'''
    assert list(docstrings(source)) == ["module", "class", "method", "function"]


def test_only_prose_is_kept_of_a_numpy_docstring() -> None:
    docstring = """Return the mean of the values along an axis,
    with   doubled    spaces joined.

    Parameters
    ----------
    a : array_like, optional
        Array of numbers whose mean is wanted by the caller.
    axis : None or int or tuple of ints, which describes it at length
        Axis along which the means are computed one by one.

    See Also
    --------
    average, median, standard_deviation

    Examples
    --------
    >>> mean([1, 2])   # this is a long comment that would count as prose
    an output that looks like prose, but is of the example above

    ======  ==================================================
    column  a table is not prose, however many words it has
    ======  ==================================================
    """
    assert prose_of(docstring) == [
        "Return the mean of the values along an axis, with doubled spaces joined.",
        "Array of numbers whose mean is wanted by the caller.",
        "Axis along which the means are computed one by one.",
    ]


def test_only_prose_is_kept_of_google_and_sphinx_docstrings() -> None:
    docstring = """Args:
        input (Tensor): the tensor that is going to be reduced here
        dim (int, optional): the dimension along which it is reduced, if
            it is not to be reduced completely

    :param bind: an engine or a connection that is used for the query

    .. versionadded:: 2.0 of the library that this is a docstring of

    See :meth:`~package.Session.merge` and :class:`.Thing` for ``more`` about `all` of this.

    | short | table | with several words | in its many cells |
    """
    assert prose_of(docstring) == [
        "the tensor that is going to be reduced here",
        "the dimension along which it is reduced, if it is not to be reduced completely",
        "an engine or a connection that is used for the query",
        "See package.Session.merge and .Thing for more about all of this.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to count.",
        "x = f(a[0], b[1]) + {1: 2}; y = [3, 4, 5]; z = (6, 7) * 8 - 9",
        "https://example.org/a-very-long-address/that-is/one-word-only",
        "averyveryveryverylongword another_very_very_long_word",
    ],
)
def test_what_is_not_prose_is_dropped(text: str) -> None:
    assert prose_of(text) == []


@pytest.mark.parametrize(
    "name",
    "torch PyTorch TorchScript __torch_function__ numpy NumPy sklearn scikit-learn Scikit_Learn pandas SciPy"
    " SQLAlchemy sqlalchemy_utils".split(),
)
def test_the_names_of_the_packages_are_masked(name: str) -> None:
    assert prose_of(f"This is what the {name} project says about its own functions.") == [
        "This is what the library project says about its own functions."
    ]


@pytest.mark.parametrize("name", ["np", "pd"])
def test_the_usual_abbreviations_are_masked_where_they_stand_for_the_package(name: str) -> None:
    text = f"Give it an {name}.Thing as it is, but never a bare {name} or a {name}x.Thing or in{name}. value."
    assert prose_of(text) == [text.replace(f"an {name}.", "an library.")]


def test_the_installed_packages_give_a_balanced_nameless_and_repeatable_set() -> None:
    # Two of the six, to be quick.
    texts, labels, groups = read_package_docs(["numpy", "sqlalchemy"])
    counts = Counter(labels)
    assert min(counts["numpy"], counts["sqlalchemy"]) > 2000
    assert len(set(texts)) == len(texts) == len(labels) == len(groups)
    assert all(group.split(".")[0] == label for group, label in zip(groups, labels, strict=True))
    assert not [text for text in texts if re.search(r"numpy|sqlalchemy|\bnp\.|>>>", text, re.IGNORECASE)]
    assert all(len(text) >= 40 and text == " ".join(text.split()) for text in texts)
    assert read_package_docs(["numpy", "sqlalchemy"]) == (texts, labels, groups)
