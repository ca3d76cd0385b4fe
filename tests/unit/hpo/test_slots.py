"""Slots whose thread could not be started, and Ctrl-C at the wrong moment."""

from __future__ import annotations

import signal
import threading
import weakref
from pathlib import Path

import pytest

from hpo.endings import terminable
from hpo.events import JobLabel, Notice
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_destructor_ends_the_sweep_all_the_same() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    slots = Slots()
    with terminable(lambda: ""):
        weakref.finalize(slots_of_before := Slots(), signal.raise_signal, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            del slots_of_before  # Python prints the exception and goes on
            slots.hear()
        thread = threading.Thread(target=slots._heard.put, args=(Notice(message="hello"),))
        thread.start()
        assert slots.hear() == Notice(message="hello"), "it was raised twice"
        thread.join()
