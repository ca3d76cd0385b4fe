"""Signatures and sentences of installed packages: what is public, what is paired, and that there is one answer."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from textwrap import indent

import pytest

from training.api_docs import documented, first_sentence, read_api_docs
from training.errors import DataError

Pairs = list[tuple[str, str]]

JUMP = "Jump over the lazy dog"
WALK = "Walk around the busy cat"


def function(name: str, sentence: str, parameters: str = "") -> str:
    return f'def {name}({parameters}):\n    """{sentence}."""\n'


def install(site: Path, file: str, *definitions: str) -> None:
    path = site / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(definitions), encoding="utf-8")


def pairs_of(*packages: str) -> Pairs:
    columns = read_api_docs(packages or ["fox"])
    return list(zip(columns["text"], columns["pair"], strict=True))


def names_of(*packages: str) -> list[str]:
    return [text.partition("(")[0] for text, _ in pairs_of(*packages)]


def signatures(code: str) -> list[str]:
    return [text for text, _ in documented(ast.parse(code).body)]


def test_each_api_has_its_sentence_module_and_package_in_sorted_order(site: Path) -> None:
    install(site, "turtle/__init__.py", function("walk", WALK, "cat"))
    install(site, "fox/b/__init__.py", function("sleep", "Do not move until the morning"))
    install(site, "fox/a.py", function("jump", JUMP, "dog, height"), function("dive", "Go under the deep water"))
    install(site, "fox/__init__.py")
    assert read_api_docs(["turtle", "fox"]) == {
        "text": ["walk(cat)", "jump(dog, height)", "dive()", "sleep()"],
        "pair": [WALK, JUMP, "Go under the deep water", "Do not move until the morning"],
        "group": ["turtle", "fox.a", "fox.a", "fox.b"],
        "label": ["turtle", "fox", "fox", "fox"],
    }


def test_packages_are_never_executed(site: Path, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    install(site, "fox/__init__.py", f"open({str(witness)!r}, 'w')", function("jump", JUMP))
    assert pairs_of() == [("jump()", JUMP)]
    assert not witness.exists()


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ("def f(): ...", "f()"),
        ("async def f(a): ...", "f(a)"),
        ("def f(a: int, b: str = 'x', *, c: bool = True) -> None: ...", "f(a, b, c)"),
        ("def f(a, /, b, *args, c, **kwargs): ...", "f(a, b, *args, c, **kwargs)"),
        ("def f(a, _cache=None, *_args, _b=1, **__kw): ...", "f(a, *args, **kw)"),
        ("@functools.cache\ndef f(a): ...", "f(a)"),
        ("class A: ...", "A"),
        ("class A:\n  def __init__(self, b, c=1): ...", "A(b, c)"),
        ("class A:\n  def __init__(self): ...", "A()"),
    ],
)
def test_a_signature_is_the_name_and_the_names_of_the_parameters(definition: str, text: str) -> None:
    assert signatures(definition) == [text]


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ("def f(self, a): ...", "A.f(a)"),
        ("@classmethod\ndef f(cls, a): ...", "A.f(a)"),
        ("@staticmethod\ndef f(a, b): ...", "A.f(a, b)"),
        ("def f(this, /, a): ...", "A.f(a)"),
        ("def f(*args): ...", "A.f(*args)"),
        ("@property\ndef f(self): ...", "A.f"),
        ("@functools.cached_property\ndef f(self): ...", "A.f"),
        ("@util.memoized_property\ndef f(self): ...", "A.f"),
        ("@cache_readonly\ndef f(self): ...", "A.f"),
        ("@set_property_of('x')\ndef f(self, a): ...", "A.f(a)"),
        ("class B:\n  def __init__(self, c): ...", "A.B(c)"),
    ],
)
def test_a_member_is_named_with_its_class_and_without_self(definition: str, text: str) -> None:
    assert signatures("class A:\n" + indent(definition, "  ")) == ["A", text]


@pytest.mark.parametrize(
    "definition",
    [
        "def _f(): ...",
        "class _A:\n  def f(self): ...",
        "@overload\ndef f(): ...",
        "@typing.overload\ndef f(): ...",
        "@deprecated('use g')\ndef f(): ...",
        "@utils.deprecated\nclass A:\n  def f(self): ...",
        "if True:\n  def f(): ...",
        "f = 1",
    ],
)
def test_what_is_private_or_hidden_is_no_api(definition: str) -> None:
    assert signatures(definition) == []


def test_members_that_are_private_or_hidden_are_no_api() -> None:
    code = """
class A:
    def __len__(self): ...
    def _f(self): ...
    class _B:
        def f(self): ...
    @x.setter
    def x(self, value): ...
    def f(self):
        def inner(): ...
"""
    assert signatures(code) == ["A", "A.f()"]


def test_a_public_module_offers_what_it_declares_or_else_all_of_it(site: Path) -> None:
    install(site, "fox/__init__.py")
    install(site, "fox/all_of_it.py", function("jump", JUMP))
    install(site, "fox/some.py", "__all__ = ['walk']", function("walk", WALK), function("run", "Run for your life"))
    install(site, "fox/more.py", "__all__ = walk.__all__ + ['dig']", function("dig", "Dig a very deep hole"))
    assert names_of() == ["jump", "dig", "walk"]


def test_a_private_module_offers_what_it_declares_or_a_public_package_imports(site: Path) -> None:
    install(site, "fox/__init__.py", "from ._one import jump", "from fox._all import *", "from . import _one")
    install(site, "fox/_one.py", function("jump", JUMP), function("run", "Run for your own life"))
    install(
        site, "fox/_declaring.py", "__all__ = ['walk']", function("walk", WALK), function("eat", "Eat all the food")
    )
    install(site, "fox/_all.py", function("dig", "Dig a very deep hole"))
    install(site, "fox/_none.py", function("sleep", "Do not move until the morning"))
    assert names_of() == ["dig", "walk", "jump"]


def test_a_private_package_offers_only_what_a_public_one_imports_from_it(site: Path) -> None:
    install(site, "fox/__init__.py", "from ._core import jump")
    install(site, "fox/_core/__init__.py", "from ._one import jump, run")
    install(site, "fox/_core/_one.py", function("jump", JUMP), function("run", "Run for your own life"))
    install(site, "fox/_core/two.py", "__all__ = ['walk']", function("walk", WALK))
    install(site, "fox/sub/__init__.py", "from .._core.three import *")
    install(
        site,
        "fox/_core/three.py",
        "__all__ = ['dig']",
        function("dig", "Dig a very deep hole"),
        function("eat", "Eat all the food"),
    )
    assert names_of() == ["jump", "dig"]


def test_tests_and_vendored_code_are_left_out(site: Path) -> None:
    install(site, "fox/__init__.py", function("jump", JUMP))
    for number, file in enumerate(["tests/a.py", "testing/a.py", "_vendor/a.py", "conftest.py", "sub/conftest.py"]):
        install(site, f"fox/{file}", function(f"f{number}", f"{JUMP} {'again ' * number}please"))
    assert names_of() == ["jump"]


def test_files_that_cannot_be_parsed_or_hold_next_to_no_documentation_are_passed_over(site: Path) -> None:
    install(site, "fox/__init__.py", function("jump", JUMP))
    install(site, "fox/template.py", function("walk", WALK), "def {{ name }}(): pass")
    install(site, "fox/table.py", function("dig", "Dig a very deep hole"), f"x = {list(range(1000))}")
    (site / "fox" / "_private.py").write_bytes(b'"""' + b"\xff\x00" * 50 + b'"""')
    install(site, "fox/escape.py", function("eat", "Eat all the food"), "pattern = '\\d'")  # an invalid escape: warns
    assert names_of() == ["jump", "eat"]


def test_a_sentence_of_several_apis_is_dropped_with_all_of_them(site: Path) -> None:
    install(site, "fox/__init__.py", function("jump", JUMP), function("hop", JUMP), function("dig", "Dig a deep hole"))
    install(site, "fox/a.py", function("leap", JUMP.upper().replace(" ", "  ")), function("walk", WALK))
    install(site, "turtle/__init__.py", function("crawl", WALK), function("eat", "Eat all the food"))
    assert names_of("fox", "turtle") == ["dig", "eat"]
    assert names_of("fox") == ["dig", "walk"]


def test_a_signature_with_several_sentences_is_dropped_with_all_of_them(site: Path) -> None:
    install(site, "fox/__init__.py", function("jump", JUMP, "dog"), function("walk", WALK, "cat"))
    install(site, "fox/a.py", function("Jump", "Leap across the sleeping dog", "Dog"))
    install(site, "fox/b.py", function("jump", "Hop past the tired dog", "dog, height"))
    assert [text for text, _ in pairs_of()] == ["walk(cat)", "jump(dog, height)"]


def test_a_name_is_masked_in_the_sentences_of_its_own_package_alone(site: Path) -> None:
    sentence = "Give the turtle a PyTurtle or a fox"
    install(site, "turtle/__init__.py", function("to_turtle", sentence))
    assert pairs_of("turtle") == [("to_turtle()", "Give the library a library or a fox")]
    install(site, "fox/__init__.py", function("to_turtle", sentence))
    assert pairs_of("fox") == [("to_turtle()", "Give the turtle a PyTurtle or a library")]


@pytest.mark.parametrize(
    ("package", "spelling"),
    [
        ("numpy", "np.ndarray"),
        ("numpy", "NumPy"),
        ("pandas", "pd.NA"),
        ("sklearn", "scikit-learn"),
        ("torch", "PyTorch"),
        ("sqlalchemy", "SQLAlchemy"),
    ],
)
def test_a_package_is_masked_as_it_calls_itself(
    site: Path, package: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.api_docs.package_roots", lambda packages: {name: site / name for name in packages})
    install(site, f"{package}/__init__.py", function("make", f"Make it a {spelling} or an np or a pd"))
    masked = re.sub(r"^[\w-]+", "library", spelling)
    assert pairs_of(package) == [("make()", f"Make it a {masked} or an np or a pd")]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Jump over the lazy dog", "Jump over the lazy dog"),
        ("Jump over the\n    lazy dog.\n\nThen walk around the cat.", "Jump over the lazy dog"),
        ("Jump over the lazy dog.  Then walk around the cat.", "Jump over the lazy dog"),
        ("Jump over the lazy dog! and walk.", "Jump over the lazy dog"),
        ("Fit the model to X. Then use it.", "Fit the model to X"),
        ("Jump over animals, e.g. Dogs, i.e. Lazy ones. Or walk.", "Jump over animals, e.g. Dogs, i.e. Lazy ones"),
        ("Jump over dogs, cats, etc.", "Jump over dogs, cats, etc"),
        ("Jump 1.5 times over dog.legs at once.", "Jump 1.5 times over dog.legs at once"),
        ("jump(dog, height=1) -> Tensor\n\nJump over the lazy dog.", "Jump over the lazy dog"),
        ("jump(dog,\n     height)\n\nJump over the lazy dog.", "Jump over the lazy dog"),
        ("Jump over the lazy dog\nArgs:\n    dog: the dog", "Jump over the lazy dog"),
        ("Jump over the lazy dog\n- if it sleeps\n- if not", "Jump over the lazy dog"),
        ("Jump over the lazy dog\n:param dog: the dog", "Jump over the lazy dog"),
        ("Jump over the lazy dog\n.. versionadded:: 2.0", "Jump over the lazy dog"),
        ("Jump over the lazy dog\n>>> jump(dog)", "Jump over the lazy dog"),
        ("Jump over the lazy dog\nParameters\n----------\ndog : Dog", "Jump over the lazy dog"),
        ("Jump over a\n:class:`.Dog` and the ``cat`` of `them`", "Jump over a Dog and the cat of them"),
        ("Call :meth:`~farm.animals.Dog.sit` or :func:`farm.sit`.", "Call Dog.sit or sit"),
        ("Call :meth:`_farm.Dog.sit` of a `farm.Dog` now.", "Call Dog.sit of a Dog now"),
        ("Jump over `dog.height + 1` of them.", "Jump over dog.height + 1 of them"),
        ("Read :ref:`the guide <farm-guide>` of `the farm <http://x.y>`_ first.", "Read the guide of the farm first"),
        ("Jump **over** the *lazy* dog [1]_ with *legs.", "Jump over the lazy dog with legs"),
        ("Compute 2 * x for all Layer*D.", "Compute 2 * x for all Layer*D"),
    ],
)
def test_the_first_sentence_is_one_line_of_plain_text_without_its_full_stop(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Jump over it.",
        "Jump. Over the lazy dog and the cat.",
        "Parameters\n----------\ndog : the lazy dog",
        "Args:\n    dog: the lazy dog that is jumped over",
        "- over the lazy dog\n- around the cat",
        ".. deprecated:: 2.0\n   Jump over another dog instead.",
        "Deprecated, jump over another dog.",
        "DEPRECATED: jump over another dog.",
        "See :func:`jump` for what this does.",
        "Same as jump but over a cat.",
        "Alias for the jump over a dog.",
        "The hop is an alias for jump.",
        "Jump over one of the following dogs:",
        "Jump over %(klass)s and the lazy dog.",
        "Jump over {klass} and the lazy dog.",
        r"Compute :math:`\frac{1}{x}` of every value given.",
        "f(x) == (x + 1) ** 2 - 3",
        "TODO: jump over the lazy dog.",
    ],
)
def test_what_says_nothing_about_the_api_is_no_sentence(docstring: str) -> None:
    assert first_sentence(docstring) == ""


def test_a_package_that_is_not_installed_is_left_out_and_none_at_all_refused(site: Path) -> None:
    install(site, "fox/__init__.py", function("jump", JUMP))
    install(site, "silent/__init__.py", "def walk(): ...")
    assert names_of("no_such_package", "fox", "silent") == ["jump"]
    with pytest.raises(DataError, match="data.name: api_docs found no documented API in silent, no_such_package; inst"):
        read_api_docs(["silent", "no_such_package"])


def test_the_installed_packages_give_pairs_with_one_answer_and_the_same_each_time() -> None:
    # Two of the six, to be quick.
    columns = read_api_docs(["numpy", "sqlalchemy"])
    texts, pairs = columns["text"], columns["pair"]
    counts = Counter(columns["label"])
    assert min(counts["numpy"], counts["sqlalchemy"]) > 500
    assert {len(set(map(str.casefold, each))) for each in (texts, pairs)} == {len(texts)}
    assert all(group.split(".")[0] == label for group, label in zip(columns["group"], columns["label"], strict=True))
    assert all(re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*(\([\w*, ]*\))?", text) for text in texts)
    assert not [text for text in texts if re.search(r"\b_|\w\.\w+\(self\b", text)]
    assert not [pair for pair in pairs if re.search(r"`|\n|\s\s|deprecat|\.$", pair) or len(pair.split()) < 4]
    owned = zip(pairs, columns["label"], strict=True)
    assert not [pair for pair, label in owned if label in pair.lower()]
    assert read_api_docs(["numpy", "sqlalchemy"]) == columns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("argmin(a, axis, out, keepdims)", "indices of the minimum"),
        ("create_engine(url, **kwargs)", "Create a new Engine"),
    ],
)
def test_what_everybody_uses_is_there(text: str, words: str) -> None:
    assert words in dict(pairs_of("numpy", "sqlalchemy"))[text]
