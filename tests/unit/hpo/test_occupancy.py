"""Run directories outside a search: one training at a time, and none in the folds of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpo.errors import HpoError
from hpo.occupancy import occupied
from hpo.opening import require_resumable
from training.run_dir import RunDir

HOLDS = """
import sys, time
from pathlib import Path
from hpo.occupancy import occupied
with occupied(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_process_s_until_that_is_gone_however_it_went(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"has it\n"
    with pytest.raises(HpoError, match="another process trains there; wait for its end, or begin another"):
        with occupied(tmp_path):
            raise AssertionError("two have it")
    other.kill()
    other.communicate()
    with occupied(tmp_path):
        assert [*tmp_path.iterdir()] == [], "and it leaves no trace"


def test_only_the_search_goes_on_with_its_folds(tmp_path: Path) -> None:
    fold = RunDir(tmp_path / "bert_cv" / "trial_0012" / "fold_3")
    (fold.checkpoints / "epoch_0001").mkdir(parents=True)
    with pytest.raises(HpoError, match="a fold of a search, which hpo sweep goes on with; hpo replay trains one again"):
        require_resumable(fold.path)
