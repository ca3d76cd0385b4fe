"""A watch hears of whole files, or of nothing."""

from __future__ import annotations

import ctypes
import select
from pathlib import Path

import pytest

from hpo.watch import Watch


def heard(watch: Watch) -> bool:
    assert watch.descriptor is not None
    return bool(select.select([watch.descriptor], [], [], 0)[0])


def test_it_hears_of_a_file_that_was_renamed_into_the_folder_and_not_of_one_that_grows(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        (tmp_path / "grows").write_text("a line")
        assert not heard(watch)
        (tmp_path / "grows").rename(tmp_path / "result.json")
        assert heard(watch)
        watch.clear()
        assert not heard(watch)
        watch.clear()  # nothing to clear is no error
    assert watch.descriptor is None


@pytest.mark.parametrize("lacks", ["the call", "room for another"])
def test_without_it_nothing_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    class Library:
        def __init__(self) -> None:
            if lacks != "the call":
                self.inotify_init1 = lambda flags: -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Library())
    with Watch(tmp_path) as watch:
        assert watch.descriptor is None
        watch.clear()
