"""A disk that takes no more is called that, whoever wrote to it, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import SmallDisk
from training.atomic_files import write_atomically
from training.errors import FailureKind, classify
from training.full_disk import explain
from training.run_dir import Event, Record, RunDir

SIZE = 8 << 20
REPOSITORY = Path(__file__).parents[3]


def save_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(SIZE)}, path)


def save_through_a_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.zeros(SIZE), file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "Python": lambda path: path.write_bytes(bytes(4 * SIZE)),
    "torch": lambda path: torch.save(torch.zeros(SIZE), path),
    "torch, open file": save_through_a_file,
    "numpy": lambda path: np.save(path, np.zeros(SIZE)),
    "numpy, raw": lambda path: np.zeros(SIZE).tofile(path),
    "safetensors": save_safetensors,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_writer_says_full_disk_in_its_own_way(write: Callable[[Path], Any], small_disk: SmallDisk) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what differs
        write(small_disk.path / "file.npy")
    assert classify(caught.value) is FailureKind.DISK_FULL
    said = explain(caught.value, small_disk.path)
    assert said.startswith(f"{small_disk.path} cannot be written: No space left on device; ")
    assert said.endswith(" of 24.0 MiB are free now; make room")


def test_what_is_whole_stays_whole_on_a_full_disk(small_disk: SmallDisk) -> None:
    run_dir = RunDir(small_disk.path / "run")
    run_dir.path.mkdir()
    record = Record(event=Event.TRAIN, step=1, epoch=0, time=0.0, values={"loss": 1.0} | dict.fromkeys("abc", 0.0))
    write_atomically(run_dir.result, b"old")
    run_dir.append(record)
    small_disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write_atomically(run_dir.result, b"new")
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            run_dir.append(record)
    assert run_dir.result.read_bytes() == b"old"
    assert set(path.name for path in run_dir.path.iterdir()) == {"result.json", "metrics.jsonl"}
    assert all(each == record for each in run_dir.records())


def test_a_disk_that_became_read_only_is_another_ones_business(small_disk: SmallDisk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk.path], check=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        (small_disk.path / "file").write_text("")
    assert classify(caught.value) is FailureKind.DISK_FULL
    assert "Read-only file system; " in explain(caught.value, Path("/"))
    assert explain(caught.value, Path("/")).startswith(f"{small_disk.path} cannot be written")
    assert explain(caught.value, Path("/")).endswith("see to that disk")


def test_a_quota_and_a_broken_disk_are_called_alike() -> None:
    for number in (errno.EDQUOT, errno.EIO):
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise RuntimeError("the writer broke") from error
        except RuntimeError as error:
            assert classify(error) is FailureKind.DISK_FULL
            assert os.strerror(number) in explain(error, Path.cwd())


FILLS_SHARED_MEMORY = """\
import torch
from torch.utils.data import DataLoader
from training.errors import classify

if __name__ == "__main__":
    try:
        for _ in DataLoader([torch.zeros(1 << 20)] * 8, batch_size=2, num_workers=1):
            pass
    except RuntimeError as error:
        print(classify(error))
"""


def test_a_full_shared_memory_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "fills.py").write_text(FILLS_SHARED_MEMORY)
    mount = "mount -t tmpfs -o size=2m tmpfs /dev/shm"  # of that process alone
    in_it = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if (refused := subprocess.run([*in_it, mount], capture_output=True, text=True)).returncode:
        pytest.skip(f"needs the right to mount: {refused.stderr.strip()}")
    done = subprocess.run(
        [*in_it, f'{mount} && exec "$0" fills.py', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["shm_full"], done.stderr
