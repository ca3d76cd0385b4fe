"""The devices of a job and the processes on them (torchelastic's worker group), which stay for the folds of a trial.

Only the first fold of a trial waits for imports, a process group and a GPU's context; nothing stays from one trial to
another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpo.cancellation import NEVER, Cancellation
from hpo.devices import Placement, detect_hardware
from hpo.launchers import LaunchedJob, launch
from hpo.leases import lease
from training.config import JobConfig
from training.run_dir import RunDir

LEAVE_S = 10.0
"""How long processes may take to end by themselves; rank 0 may still delete checkpoints."""

OnNotice = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """How long a job had its devices, in seconds of wall time, and how many: a GPU, or on a CPU a rank, is one."""

    seconds: float
    num_devices: int

    @property
    def device_s(self) -> float:
        """Device seconds."""
        return self.seconds * self.num_devices


class Crew:
    """Runs one job at a time. Used by one thread, which lives as long as the processes; nothing is left at its end."""

    def __init__(self, cancellation: Cancellation = NEVER, *, stays: bool = False) -> None:
        self.cancellation = cancellation
        self.stays = stays
        """Whether processes wait for another job of their trial when one has ended well."""
        self._lease = contextlib.ExitStack()
        self._trial: tuple[Path, JobConfig] | None = None
        """What jobs must have in common to share processes."""
        self._placement: Placement | None = None
        self._job: LaunchedJob | None = None
        self._launched: Placement | None = None
        """Where its processes are."""
        self._waits_in: RunDir | None = None
        """Where the processes have trained and wait to be told what is next."""
        self.went_on = False
        """Whether the processes of the last job had trained another before."""
        self._held_since: float | None = None
        self._held_s, self._num_devices = 0.0, 0
        """Since it was last asked for its usage, up to `_held_since`; devices of the last lease."""
        self._on_notice: OnNotice = lambda text: None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def place(self, config: JobConfig, run_dir: RunDir, on_notice: OnNotice) -> Placement:
        """Where the job will run, on devices leased for it or for one before it. Raises as ``lease`` does."""
        trial = (run_dir.path.parent, config.model_copy(update={"cross_validation": None}))
        self._on_notice = on_notice
        if trial != self._trial or self._placement is None:
            self.dismiss()
            self._placement = self._lease.enter_context(
                lease(
                    config.distributed,
                    detect_hardware(),
                    on_wait=lambda text: self._on_notice(text),  # also when the lease ends, by then another job's
                    is_cancelled=self.cancellation.is_requested,
                )
            )
            self._trial, self._num_devices = trial, self._placement.world_size
            self._held_since = time.monotonic()
        return self._placement

    @property
    def has_devices(self) -> bool:
        """Whether it holds any. Any thread may ask."""
        return self._placement is not None

    def take_usage(self) -> Usage:
        """What it had since it was last asked: waiting for devices does not count, ending processes does."""
        self._count()
        usage, self._held_s = Usage(seconds=self._held_s, num_devices=self._num_devices), 0.0
        return usage

    def _count(self) -> None:
        now = time.monotonic()
        if self._held_since is not None:
            self._held_s += now - self._held_since
            self._held_since = now

    def start(self, config: JobConfig, run_dir: RunDir, placement: Placement) -> LaunchedJob:
        """The processes of the job in `run_dir`: those that wait, or new ones. Raises OSError and LaunchCancelled."""
        before, self._waits_in = self._waits_in, None
        self.went_on = before is not None and placement == self._launched and before.write_next(run_dir)
        if self._job is None or not self.went_on:
            self._waits_in = before
            self.end_job()
            self._job = launch(config, run_dir, placement, self._on_notice, self.cancellation.is_requested)
            self._launched = placement
        return self._job

    def keep(self, run_dir: RunDir) -> None:
        """Let the processes, which have ended the job in `run_dir` well, wait for another."""
        self._waits_in = run_dir

    def end_job(self) -> None:
        """Have no process left, at once if they have something to do."""
        job, self._job = self._job, None
        waited_in, self._waits_in = self._waits_in, None
        if job is None:
            return
        try:
            if waited_in is not None:
                with contextlib.suppress(OSError):  # a full disk
                    waited_in.write_next(None)
                    self._wait_for(job)
        finally:
            left = job.end(self.cancellation.is_urgent)
        if left:
            self._on_notice(f"processes of the job did not end when they were killed: {', '.join(map(str, left))}")

    def _wait_for(self, job: LaunchedJob) -> None:
        deadline = time.monotonic() + LEAVE_S
        while job.poll() is None and time.monotonic() < deadline and not self.cancellation.is_urgent():
            job.wait(0.1)

    def dismiss(self) -> None:
        """Have no process left, and let the devices go."""
        try:
            self.end_job()
        finally:
            self._trial = self._placement = None
            self._lease.close()
            self._count()
            self._held_since = None
