"""``run_single_trial``: one training job from a resolved configuration to a TrialResult. Everything trains through it.

lease devices -> prepare run dir -> launch -> follow (report, stop) -> collect -> nothing left behind
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from hpo.devices import Placement, detect_hardware
from hpo.launchers import Job, LaunchCancelled, command_line, launch
from hpo.leases import LeaseCancelled, lease
from training.config import JobConfig
from training.errors import Failure, FailureKind, TrainingError
from training.run_dir import Event, Record, RunDir, Tail

POLL_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 4000
_FAILED_STARTS: set[tuple[str, int]] = set()
"""Backends and numbers of ranks whose start failed in this process: it is not tried again for every fold."""


class JobStatus(StrEnum):
    """How a job ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What a job came to. `metrics` are those of its last evaluation (empty when it failed before one)."""

    status: JobStatus
    metrics: dict[str, float]
    failure: Failure | None
    duration_s: float
    world_size: int
    run_dir: RunDir
    split_id: str | None = None
    """Identity of the samples and folds of a job that did not fail."""


OnRecord = Callable[[Record], bool]
"""Hears each record of rank 0 as it comes; returns True to ask the job to stop."""
OnNotice = Callable[[str], None]


class JobCancelled(Exception):
    """The job was called off; nothing is left of it."""


class Cancellation:
    """Calls jobs off, from another thread."""

    def __init__(self) -> None:
        self._requested, self._urgent = threading.Event(), threading.Event()

    def request(self, *, at_once: bool = False) -> None:
        """Have the jobs end in good order, or be killed `at_once`."""
        if at_once:
            self._urgent.set()
        self._requested.set()

    def is_requested(self) -> bool:
        """Whether the jobs are to end."""
        return self._requested.is_set()

    def is_urgent(self) -> bool:
        """Whether to wait no longer for those that were asked to."""
        return self._urgent.is_set()


NEVER = Cancellation()
"""Of a job that nobody calls off."""


def run_single_trial(
    config: JobConfig,
    run_dir: RunDir,
    *,
    on_record: OnRecord,
    on_notice: OnNotice,
    cancellation: Cancellation = NEVER,
    resume: bool = False,
) -> TrialResult:
    """Train `config` in `run_dir` on devices that it has to itself, a rank each, and return what came of it.

    `resume` goes on from the newest checkpoint in `run_dir`; otherwise what an earlier attempt left is cleared.

    A distributed job that cannot start is run again as one process, and `on_notice` hears why. A failure of the job is
    a result, not an exception; an exception raised meanwhile (Ctrl-C, a callback's) ends the job's processes first.
    Raises DeviceError, OSError (a full disk), and JobCancelled soon after `cancellation` asks for it. Called by the
    orchestrator, on a thread that lives as long as the job.
    """
    try:
        is_cancelled = cancellation.is_requested
        with lease(config.distributed, detect_hardware(), on_wait=on_notice, is_cancelled=is_cancelled) as placement:
            return _run(config, run_dir, placement, _Ears(on_record, on_notice, cancellation), resume=resume)
    except (LeaseCancelled, LaunchCancelled) as error:
        raise JobCancelled from error


@dataclass(frozen=True, slots=True)
class _Ears:
    """Who hears of a job, and whom it hears."""

    on_record: OnRecord
    on_notice: OnNotice
    cancellation: Cancellation


def _run(config: JobConfig, run_dir: RunDir, placement: Placement, ears: _Ears, *, resume: bool) -> TrialResult:
    on_notice = ears.on_notice
    for finding in placement.notices:
        on_notice(str(finding))
    alone = _alone(config, placement)
    attempted = (config.distributed.backend, placement.world_size)
    if attempted in _FAILED_STARTS:
        placement = alone
    ears = replace(ears, on_record=_telling(run_dir, placement, ears))
    run_dir.prepare(config, resume=resume)
    run_dir.add_findings(placement.notices)
    if placement.num_nodes > 1:
        others = (
            "the other machine" if placement.num_nodes == 2 else f"each of the other {placement.num_nodes - 1} machines"
        )
        on_notice(f"start this on {others} within 10 minutes, from this folder: {command_line(run_dir, placement)}")
    result = _attempt(config, run_dir, placement, ears)
    if placement.world_size > 1 and placement.num_nodes == 1 and _did_not_start(result):
        assert result.failure is not None
        _FAILED_STARTS.add(attempted)
        on_notice(f"the distributed start failed, falling back to one process: {result.failure.message}")
        run_dir.prepare(config, resume=resume)
        result = _attempt(config, run_dir, alone, ears)
    return result


def _alone(config: JobConfig, placement: Placement) -> Placement:
    """One process on the same devices, where the ranks cannot start."""
    threads = placement.threads_per_rank
    if config.distributed.threads_per_rank == "auto":
        threads *= placement.world_size // placement.num_nodes
    return replace(placement, world_size=1, num_nodes=1, gpus=placement.gpus[:1], threads_per_rank=threads)


def _telling(run_dir: RunDir, placement: Placement, ears: _Ears) -> OnRecord:
    """The listener, and what rank 0 found before its first step is told when it starts."""

    def tell(record: Record) -> bool:
        if record.event is Event.START:
            for finding in run_dir.load_findings():
                if finding not in placement.notices:
                    ears.on_notice(str(finding))
        return ears.on_record(record)

    return tell


def _attempt(config: JobConfig, run_dir: RunDir, placement: Placement, ears: _Ears) -> TrialResult:
    started, outcome = time.monotonic(), None
    try:
        config.batch_plan(placement.world_size)
        # What was recorded before is that of the part which a resumed job does not repeat.
        tail = Tail(run_dir, offset=run_dir.metrics.stat().st_size if run_dir.metrics.exists() else 0)
        job = launch(config, run_dir, placement, ears.on_notice, ears.cancellation.is_requested)
        exit_status = _follow(job, tail, run_dir, ears)
        outcome = run_dir.load_result()  # a written result counts, however the processes ended afterwards
        failure = None if outcome else run_dir.load_error() or _unexplained(run_dir, placement, exit_status)
    except TrainingError as error:  # a batch that cannot be shared; a record that a full disk cut off
        failure = Failure(kind=error.kind, message=str(error))
        run_dir.write_error(failure)
    return TrialResult(
        status=JobStatus.FAILED if outcome is None else JobStatus.STOPPED if outcome.stopped else JobStatus.COMPLETE,
        metrics=outcome.metrics if outcome else {},
        failure=failure,
        duration_s=time.monotonic() - started,
        world_size=placement.world_size,
        run_dir=run_dir,
        split_id=outcome.split_id if outcome else None,
    )


def _follow(job: Job, tail: Tail, run_dir: RunDir, ears: _Ears) -> int:
    """Pass on every record until the job is gone; ask it to stop when a listener says so. Returns its exit status."""
    try:
        running = True
        while running:
            job.wait(POLL_INTERVAL_S)
            running = job.poll() is None  # looked at before the last read, so nothing written meanwhile is missed
            for record in tail.read():
                if ears.on_record(record):
                    run_dir.request_stop()
            if ears.cancellation.is_requested():
                raise JobCancelled
    finally:
        if left := job.end(ears.cancellation.is_urgent):
            ears.on_notice(f"processes of the job did not end when they were killed: {', '.join(map(str, left))}")
    return job.poll() or 0


def _unexplained(run_dir: RunDir, placement: Placement, exit_status: int) -> Failure:
    """No rank could say why. The first act of a rank is to open its log; torchrun's status does not tell a signal."""
    how = f"signal {-exit_status}" if exit_status < 0 else f"exit status {exit_status}"
    if exit_status >= 0 and not any(run_dir.logs.glob("rank_*.log")):
        kind, text = FailureKind.LAUNCH, "the job ended before it began"
    elif exit_status >= 0 and placement.world_size == 1:
        kind, text = FailureKind.USER_CODE, "the job left without a result"
    else:
        kind, text = FailureKind.SIGNAL, "a rank was killed"
    return Failure(kind=kind, message=f"{text} ({how}); see {run_dir.logs}", traceback=_log_tail(run_dir))


def _log_tail(run_dir: RunDir) -> str:
    log = run_dir.log("agent")
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""


def _did_not_start(result: TrialResult) -> bool:
    return result.failure is not None and result.failure.kind in {FailureKind.DISTRIBUTED_START, FailureKind.LAUNCH}
