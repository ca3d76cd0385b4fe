"""Slots of which a thread could not be started."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpo.events import JobLabel
from hpo.job import Job
from hpo.slots import Slots
from training.config import JobConfig
from training.run_dir import RunDir


def test_a_job_whose_thread_did_not_start_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as under ulimit -u

    monkeypatch.setattr(threading.Thread, "start", refuse)
    slots = Slots()
    with pytest.raises(RuntimeError, match="new thread"):
        slots.start(Job(label=JobLabel(study="s"), config=JobConfig(), run_dir=RunDir(tmp_path)))
    assert not slots
