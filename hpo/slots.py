"""Jobs side by side: each runs on a thread of its own, and what they tell comes to one thread, in order.

The threads only launch and follow. The study, its listeners and every decision are the business of the thread that
owns the slots.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from hpo import interruption
from hpo.events import Event, JobLabel
from hpo.job import Job, run_job
from hpo.trial import Cancellation, JobCancelled


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last word of a thread."""

    label: JobLabel
    error: Exception | None = None
    """What was no result of its job, such as a full disk."""


class Slots:
    """The running jobs. Used by one thread."""

    def __init__(self) -> None:
        self._heard: SimpleQueue[Event | _Ended] = SimpleQueue()
        self._running: dict[JobLabel, threading.Thread] = {}
        self._cancellation = Cancellation()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> None:
        """Run `job`; its events are heard from now on."""
        thread = threading.Thread(target=self._run, args=(job,), name=str(job.label), daemon=True)
        thread.start()  # or there is no thread to wait for
        self._running[job.label] = thread

    def hear(self) -> Event | None:
        """Wait for the next event; None when a thread has ended. Raises the error that ended it."""
        heard = None
        while heard is None:  # in short waits, which a signal that another thread got cannot outlast
            interruption.raise_lost()
            with contextlib.suppress(Empty):
                heard = self._heard.get(timeout=0.5)
        if not isinstance(heard, _Ended):
            return heard
        self._running.pop(heard.label).join()
        if heard.error:
            raise heard.error
        return None

    def cancel(self, *, at_once: bool = False) -> None:
        """Have every job end without a result, or be killed `at_once`; what they still tell is to be heard."""
        self._cancellation.request(at_once=at_once)

    def _run(self, job: Job) -> None:
        error: Exception | None = None
        try:
            run_job(job, self._heard.put, cancellation=self._cancellation)
        except JobCancelled:
            pass
        except Exception as raised:
            error = raised
        finally:
            self._heard.put(_Ended(job.label, error))
