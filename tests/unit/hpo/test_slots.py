"""Who gets the next fold, slots whose thread could not be started, and Ctrl-C at the wrong moment."""

from __future__ import annotations

import signal
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from hpo import slots as slots_module
from hpo.crew import Crew
from hpo.endings import terminable
from hpo.events import JobFinished, JobLabel, Listener, Notice
from hpo.job import Job
from hpo.slots import Slots
from hpo.trial import TrialResult
from training.config import JobConfig
from training.run_dir import RunDir


def test_a_job_whose_thread_did_not_start_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as under ulimit -u

    monkeypatch.setattr(threading.Thread, "start", refuse)
    slots = Slots(crews_stay=True)
    with pytest.raises(RuntimeError, match="new thread"):
        slots.start(Job(label=JobLabel(study="s"), config=JobConfig(), run_dir=RunDir(tmp_path)))
    assert not slots


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_destructor_ends_the_sweep_all_the_same() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    slots = Slots(crews_stay=True)
    with terminable(lambda: ""):
        weakref.finalize(slots_of_before := Slots(crews_stay=True), signal.raise_signal, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            del slots_of_before  # Python prints the exception and goes on
            slots.hear()
        thread = threading.Thread(target=slots._heard.put, args=(Notice(message="hello"),))
        thread.start()
        assert slots.hear() == Notice(message="hello"), "it was raised twice"
        thread.join()


@dataclass
class Crews:
    """What the slots had done, and by which crew: `run_job` without a job."""

    done: list[tuple[JobLabel, Crew]] = field(default_factory=list)
    ends_sharing: bool = False

    def run_job(self, job: Job, listen: Listener, *, crew: Crew) -> None:
        self.done.append((job.label, crew))
        crew.stays = crew.stays and not self.ends_sharing
        listen(JobFinished(label=job.label, result=cast(TrialResult, object())))


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> Crews:
    crews = Crews()
    monkeypatch.setattr(slots_module, "run_job", crews.run_job)
    return crews


def job(trial: int, fold: int) -> Job:
    return Job(label=JobLabel(study="s", trial=trial, fold=fold), config=JobConfig(), run_dir=RunDir(Path()))


def run(slots: Slots, *jobs: Job) -> None:
    for each in jobs:
        slots.start(each)
        assert isinstance(slots.hear(), JobFinished)


def end(slots: Slots) -> None:
    while slots:
        assert slots.hear() is None


def test_a_crew_gets_the_next_fold_of_its_trial_and_no_other(crews: Crews) -> None:
    slots = Slots(crews_stay=True)
    run(slots, job(1, 0), job(2, 0), job(1, 1), job(2, 1))
    by_trial = [[crew for label, crew in crews.done if label.trial == trial] for trial in (1, 2)]
    assert by_trial[0][0] is by_trial[0][1] is not by_trial[1][0]
    assert by_trial[1][0] is by_trial[1][1]
    assert len(slots) == 2
    slots.dismiss_idle()
    end(slots)


def test_nothing_is_waited_for_beyond_the_time_given(crews: Crews) -> None:
    slots = Slots(crews_stay=True)
    assert slots.hear(0.0) is None
    run(slots, job(1, 0))
    assert slots.hear(0.0) is None
    assert len(slots) == 1
    slots.dismiss_idle()
    end(slots)


def test_a_cancelled_slot_that_has_nothing_to_do_ends(crews: Crews) -> None:
    slots = Slots(crews_stay=True)
    run(slots, job(1, 0))
    slots.start(job(2, 0))
    slots.cancel()  # one has been heard of, the other not yet
    assert isinstance(slots.hear() or slots.hear(), JobFinished)
    end(slots)


@pytest.mark.parametrize("lost", [JobFinished, type(None)])
def test_a_word_that_ctrl_c_took_is_not_waited_for_when_all_is_cancelled(crews: Crews, lost: type) -> None:
    slots = Slots(crews_stay=True)
    slots.start(job(1, 0))
    assert isinstance(slots._heard.get(), JobFinished)
    slots.cancel()
    if lost is not JobFinished:
        slots._heard.get()
    end(slots)


def test_crews_that_cannot_share_are_followed_by_crews_that_do_not(crews: Crews) -> None:
    slots = Slots(crews_stay=True)
    crews.ends_sharing = True
    run(slots, job(1, 0))
    slots.dismiss_idle()
    end(slots)
    crews.ends_sharing = False
    run(slots, job(2, 0))
    slots.dismiss_idle()
    end(slots)
    assert [crew.stays for _, crew in crews.done] == [False, False]
