"""Sources of installed packages: which files, in which order, and that parsing them leaves no trace."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest

from training.package_sources import (
    fast_and_silent,
    modules,
    package_roots,
    package_versions,
    share_of_documentation,
    syntax_tree,
)


def install(site: Path, *files: str) -> None:
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).touch()


def names(root: Path) -> list[str]:
    return [module for module, _ in modules(root)]


def test_modules_have_dotted_names_in_the_order_of_their_files(site: Path) -> None:
    install(site, "fox/z.py", "fox/sub/__init__.py", "fox/__init__.py", "fox/a.py", "fox/sub/deep.py", "fox/data.txt")
    assert names(site / "fox") == ["fox", "fox.a", "fox.sub", "fox.sub.deep", "fox.z"]
    assert dict(modules(site / "fox"))["fox.sub"] == site / "fox/sub/__init__.py"


@pytest.mark.parametrize("folder", "tests test _tests testing _testing externals _vendor array_api_compat".split())
def test_tests_and_vendored_code_are_no_modules(site: Path, folder: str) -> None:
    install(site, "fox/__init__.py", f"fox/{folder}/a.py", f"fox/sub/{folder}/a.py", f"fox/{folder}x.py")
    assert names(site / "fox") == ["fox", f"fox.{folder}x"]


def test_only_what_is_installed_as_a_package_has_a_folder_and_a_version(site: Path) -> None:
    install(site, "fox/__init__.py", "single_file.py", "bare_folder/data.txt")
    wanted = ["single_file", "no_such_package", "fox", "bare_folder"]
    assert package_roots(wanted) == {"fox": site / "fox"}
    assert package_versions(wanted) == {"fox": "?"}
    assert package_versions(["sklearn"])["sklearn"][0].isdigit()


@pytest.mark.parametrize("source", [b"def {{ name }}(): pass", b"\xff\x00", b"x = " + b"(" * 5000])
def test_what_cannot_be_parsed_has_no_tree(source: bytes) -> None:
    assert syntax_tree(source) is None


def test_warnings_about_the_code_of_others_are_not_shown_and_ours_are_again_after_it() -> None:
    with fast_and_silent():
        assert syntax_tree(rb"pattern = '\d'") is not None
    with pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_the_garbage_collector_is_left_as_it_was() -> None:
    with pytest.raises(RuntimeError), fast_and_silent():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()
    gc.disable()
    try:
        with fast_and_silent():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_share_of_documentation_is_what_stands_between_triple_quotes() -> None:
    assert share_of_documentation(b"") == 0
    assert share_of_documentation(b"x = 1") == 0
    assert share_of_documentation(b'"""1234"""') == 0.4
    assert share_of_documentation(b"'''1234'''") == 0.4
