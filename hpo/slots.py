"""Jobs side by side: a slot is a thread that runs one after another, and what they tell comes to one thread, in order.

The threads only launch and follow. The study, its listeners and every decision are the business of the thread that
owns the slots.
"""

from __future__ import annotations

import contextlib
import threading
from queue import Empty, SimpleQueue

from hpo import interruption
from hpo.cancellation import Cancellation, JobCancelled
from hpo.crew import Crew
from hpo.events import Event, JobFinished
from hpo.job import Job, run_job


class _Slot:
    """A thread and the job that it runs, or ran last."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_idle = False
        self.next: SimpleQueue[Job | None] = SimpleQueue()
        self.thread: threading.Thread
        self.error: Exception | None = None
        """What ended the thread and was no result of its job, such as a full disk."""


class Slots:
    """The slots that run a job, or may get another at once. Used by one thread."""

    def __init__(self, *, crews_stay: bool = True) -> None:
        self._heard: SimpleQueue[Event | _Slot] = SimpleQueue()
        self._slots: list[_Slot] = []
        self._cancellation = Cancellation()
        self._crews_stay = crews_stay
        """Whether processes stay from one fold of a trial to the next."""

    def __len__(self) -> int:
        return len(self._slots)

    def start(self, job: Job) -> None:
        """Run `job`, where another of its trial has just ended or in a new slot; its events are heard from now on."""
        trial = job.run_dir.path.parent
        for slot in self._slots:
            if slot.is_idle and slot.job.run_dir.path.parent == trial:
                slot.job, slot.is_idle = job, False
                slot.next.put(job)
                return
        slot = _Slot(job)
        slot.thread = threading.Thread(target=self._run, args=(slot,), name=str(job.label), daemon=True)
        slot.thread.start()  # or there is no thread to wait for
        self._slots.append(slot)

    def dismiss_idle(self) -> None:
        """End the slots that got no other job, with their processes."""
        for slot in self._slots:
            if slot.is_idle:
                slot.is_idle = False
                slot.next.put(None)

    def hear(self) -> Event | None:
        """Wait for the next event; None when a slot has ended. Raises the error that ended it."""
        heard = None
        while heard is None:  # in short waits, which a signal that another thread got cannot outlast
            interruption.raise_lost()
            with contextlib.suppress(Empty):
                heard = self._heard.get(timeout=0.5)
        if isinstance(heard, _Slot):
            self._slots.remove(heard)
            heard.thread.join()
            if heard.error:
                raise heard.error
            return None
        if isinstance(heard, JobFinished) and heard.result is not None:
            next(slot for slot in self._slots if slot.job.label == heard.label).is_idle = True
            if self._cancellation.is_requested():
                self.dismiss_idle()
        return heard

    def cancel(self, *, at_once: bool = False) -> None:
        """Have every job end without a result, or be killed `at_once`; what they still tell is to be heard."""
        self._cancellation.request(at_once=at_once)
        self.dismiss_idle()

    def _run(self, slot: _Slot) -> None:
        job: Job | None = slot.job
        try:
            with Crew(self._cancellation, stays=self._crews_stay) as crew:
                while job is not None:
                    run_job(job, self._heard.put, crew=crew)
                    self._crews_stay = self._crews_stay and crew.stays
                    job = slot.next.get()
        except JobCancelled:
            pass
        except Exception as error:
            slot.error = error
        finally:
            self._heard.put(slot)
