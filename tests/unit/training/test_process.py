import gc

import pytest

from training.process import no_garbage_collection


def test_what_is_made_without_collection_is_left_alone_and_collection_goes_on() -> None:
    before = gc.get_freeze_count()
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
            kept = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()


def test_collection_goes_on_after_a_failure() -> None:
    try:
        with pytest.raises(ValueError, match="broken"), no_garbage_collection():
            raise ValueError("broken")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
