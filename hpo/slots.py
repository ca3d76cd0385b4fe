"""Jobs side by side: a slot is a thread that runs one after another, and what they tell comes to one thread, in order.

The threads only launch and follow. The study, its listeners and every decision are the business of the thread that
owns the slots.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from queue import Empty, SimpleQueue

from hpo import interruption
from hpo.cancellation import Cancellation, JobCancelled
from hpo.crew import Crew
from hpo.events import Event, JobFinished, JobLabel
from hpo.job import Job, run_job


class _Slot:
    """The job that a thread runs, or ran last."""

    def __init__(self, job: Job) -> None:
        self.job, self.cancellation = job, Cancellation()
        self.crew: Crew | None = None
        self.is_idle = False
        self.next: SimpleQueue[Job | None] = SimpleQueue()
        self.error: Exception | None = None
        """What ended the thread and was no result of its job, such as a full disk."""


class Slots:
    """The slots that run a job, or may get another at once. Used by one thread."""

    def __init__(self, *, crews_stay: bool) -> None:
        self._heard: SimpleQueue[Event | _Slot] = SimpleQueue()
        self._slots: dict[_Slot, threading.Thread] = {}
        self._is_cancelled = False
        self._crews_stay = crews_stay
        """Whether processes stay from one fold of a trial to the next. The slots' threads may end that."""

    def __len__(self) -> int:
        return len(self._slots)

    def start(self, job: Job) -> None:
        """Run `job`, where another of its trial has just ended or in a new slot; its events are heard from now on."""
        for slot in self._slots:
            if slot.is_idle and slot.job.label.trial == job.label.trial:
                slot.job = job
                slot.next.put(job)
                slot.is_idle = False
                return
        slot = _Slot(job)
        thread = threading.Thread(target=self._run, args=(slot,), name=str(job.label), daemon=True)
        thread.start()  # or there is no thread to wait for
        self._slots[slot] = thread

    def dismiss_idle(self) -> None:
        """End the slots that got no other job, with their processes."""
        for slot in self._slots:
            if slot.is_idle:
                slot.next.put(None)
                slot.is_idle = False

    def hear(self, wait_s: float = math.inf) -> Event | None:
        """Wait for the next event, `wait_s` at most; None then, when a slot has ended, and when we are told to leave.

        Raises what ended a slot.
        """
        heard, until = None, time.monotonic() + wait_s
        while heard is None:  # in short waits, which a signal that another thread got cannot outlast
            interruption.raise_lost()
            with contextlib.suppress(Empty):
                heard = self._heard.get(timeout=min(0.5, max(0.0, until - time.monotonic())))
            if heard is None and (time.monotonic() >= until or interruption.has_notice()):
                return None
            if heard is None and self._is_cancelled:  # Ctrl-C may have taken the last word of a thread
                heard = next((slot for slot, thread in self._slots.items() if not thread.is_alive()), None)
        if isinstance(heard, _Slot):
            if thread := self._slots.pop(heard, None):
                thread.join()
            if heard.error:
                raise heard.error
            return None
        if isinstance(heard, JobFinished) and heard.result is not None:
            next(slot for slot in self._slots if slot.job.label == heard.label).is_idle = True
        return heard

    def waiting(self) -> list[JobLabel]:
        """The jobs that have no devices yet."""
        return [slot.job.label for slot in self._slots if slot.crew is None or not slot.crew.has_devices]

    def cancel(self, trial: int | None = None, *, at_once: bool = False) -> None:
        """Have the jobs of `trial`, or all, end without a result, or be killed `at_once`; what they still tell is to be
        heard.
        """
        self._is_cancelled = self._is_cancelled or trial is None
        for slot in self._slots:
            if trial in (None, slot.job.label.trial):
                slot.cancellation.request(at_once=at_once)

    def _run(self, slot: _Slot) -> None:
        job: Job | None = slot.job
        try:
            with Crew(slot.cancellation, stays=self._crews_stay) as slot.crew:
                crew = slot.crew
                while job is not None:
                    run_job(job, self._heard.put, crew=crew)
                    if not crew.stays:
                        self._crews_stay = False
                    job = self._next(slot)
        except JobCancelled:
            pass
        except Exception as error:
            slot.error = error
        finally:
            self._heard.put(slot)

    def _next(self, slot: _Slot) -> Job | None:
        """Wait for what the slot is to do, or for the end of everything: Ctrl-C may have taken the word of either."""
        while not slot.cancellation.is_requested():
            with contextlib.suppress(Empty):
                return slot.next.get(timeout=0.1)
        return None
