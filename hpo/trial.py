"""``run_single_trial``: one training job from a resolved configuration to a TrialResult. Everything trains through it.

lease devices -> prepare run dir -> launch -> follow (report, stop) -> collect -> end its processes, or keep
them for the next fold of the trial (Crew)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from hpo.cancellation import JobCancelled
from hpo.crew import Crew, OnNotice
from hpo.devices import Placement
from hpo.errors import DiskFullError
from hpo.host_memory import oom_kills
from hpo.launchers import LaunchCancelled, command_line
from hpo.leases import LeaseCancelled
from hpo.watch import Watch
from training.config import JobConfig
from training.errors import RANK_KILLED, Failure, FailureKind, TrainingError
from training.full_disk import explain, is_disk_error, probe
from training.run_dir import Event, Outcome, Record, RunDir, Tail

POLL_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 4000
MAX_LOG_BYTES = 100 * 2**20
"""Of one log: a job that prints without end must not fill the disk."""
LOG_LOOK_S = 1.0
LEFT_BEHIND = {FailureKind.OOM, FailureKind.USER_CODE, FailureKind.DATA, FailureKind.CONFIG}
"""What a fold may fail of because of what an earlier one has left in its processes."""
ENDED_JUST_THEN = {FailureKind.SIGNAL, FailureKind.LAUNCH, FailureKind.INFRASTRUCTURE}
"""What it looks like when processes that wait for a fold are killed."""
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
    paused_at: int | None = None
    """Finished epochs at the checkpoint that a stopped job has left for another one to go on from."""


OnRecord = Callable[[Record], bool]
"""Hears each record of rank 0 as it comes; returns True to ask the job to stop."""


def run_single_trial(
    config: JobConfig,
    run_dir: RunDir,
    *,
    on_record: OnRecord,
    on_notice: OnNotice,
    crew: Crew | None = None,
    resume: bool = False,
) -> TrialResult:
    """Train `config` in `run_dir` on devices that it has to itself, a rank each, and return what came of it.

    `resume` goes on from the newest checkpoint in `run_dir`; otherwise what an earlier attempt left is cleared.
    A `crew` may have processes that trained another fold of the same trial, and keeps them for the next one.

    A distributed job that cannot start is run again as one process, and `on_notice` hears why. A failure of the job is
    a result, not an exception; an exception raised meanwhile (Ctrl-C, a callback's) ends the job's processes first.
    Raises DeviceError, DiskFullError or OSError (whoever meets the full disk), and JobCancelled soon after the crew's
    cancellation asks for it. Called by the orchestrator, on a thread that lives as long as the crew's processes.
    """
    with contextlib.nullcontext(crew) if crew else Crew() as crew:
        try:
            placement = crew.place(config, run_dir, on_notice)
            return _run(_Order(config, run_dir, on_record, on_notice, crew, resume), placement)
        except BaseException as error:
            crew.dismiss()
            if isinstance(error, LeaseCancelled | LaunchCancelled):
                raise JobCancelled from error
            raise


@dataclass(frozen=True, slots=True)
class _Order:
    """A job to be done, who hears of it and who does it."""

    config: JobConfig
    run_dir: RunDir
    on_record: OnRecord
    on_notice: OnNotice
    crew: Crew
    resume: bool


def _run(order: _Order, placement: Placement) -> TrialResult:
    for finding in placement.notices:
        order.on_notice(str(finding))
    order = replace(order, on_record=_telling(order, placement))
    alone = _alone(order.config, placement)
    attempted = (order.config.distributed.backend, placement.world_size)
    if attempted in _FAILED_STARTS:
        placement = alone
    result = _attempt(order, placement)
    if order.crew.went_on and result.failure and _may_come_from_before(result.failure, order.run_dir):
        result = _attempt_again(order, placement, result.failure)
    if placement.world_size > 1 and placement.num_nodes == 1 and _did_not_start(result):
        assert result.failure is not None
        if not order.run_dir.config.exists():  # another process has taken the fold
            return result
        _FAILED_STARTS.add(attempted)
        order.on_notice(f"the distributed start failed, falling back to one process: {result.failure.message}")
        result = _attempt(order, alone)
    return result


def _alone(config: JobConfig, placement: Placement) -> Placement:
    """One process on the same devices, where the ranks cannot start."""
    threads = placement.threads_per_rank
    if config.distributed.threads_per_rank == "auto":
        threads *= placement.world_size // placement.num_nodes
    return replace(placement, world_size=1, num_nodes=1, gpus=placement.gpus[:1], threads_per_rank=threads)


def _telling(order: _Order, placement: Placement) -> OnRecord:
    """The listener, and what rank 0 found before its first step is told when it starts."""

    def tell(record: Record) -> bool:
        if record.event is Event.START:
            for finding in order.run_dir.load_findings():
                if finding not in placement.notices:
                    order.on_notice(str(finding))
        return order.on_record(record)

    return tell


def _may_come_from_before(failure: Failure, run_dir: RunDir) -> bool:
    """Whether a job can have failed because its processes had trained another fold, or were gone when it began."""
    has_begun = run_dir.metrics.exists()
    return failure.kind in LEFT_BEHIND or (failure.kind in ENDED_JUST_THEN and not has_begun)


def _attempt_again(order: _Order, placement: Placement, failure: Failure) -> TrialResult:
    """In new processes."""
    if failure.kind in LEFT_BEHIND:
        order.on_notice(
            f"{order.run_dir.path.name} failed in processes that had trained another fold; it is tried again in new"
            f" ones: {failure.message}"
        )
    result = _attempt(order, placement)
    if result.failure is None and failure.kind in LEFT_BEHIND:
        order.crew.stays = False
        order.crew.end_job()
        order.on_notice(
            "that helped, so each fold gets new processes from now on, as with resources.processes: per_fold"
        )
    return result


def _attempt(order: _Order, placement: Placement) -> TrialResult:
    run_dir = order.run_dir
    _prepare(order, placement)
    started, outcome, killed = time.monotonic(), None, oom_kills()
    try:
        order.config.batch_plan(placement.world_size)
        exit_status = _follow(order, placement)
        outcome = run_dir.load_result()  # a written result counts, however the processes ended afterwards
        failure = None if outcome else _failure(run_dir, placement, exit_status)
        failure = _seen_from_outside(failure, run_dir, killed, was_stopped=outcome is not None and outcome.stopped)
    except TrainingError as error:  # a batch that cannot be shared; a record that a full disk cut off
        failure = Failure(kind=error.kind, message=str(error))
        run_dir.write_error(failure)
    if failure and (trouble := _disk_trouble(run_dir, failure)):
        raise DiskFullError(trouble)
    return TrialResult(
        status=_status(outcome, failure),
        metrics=outcome.metrics if outcome else {},
        failure=failure,
        duration_s=time.monotonic() - started,
        world_size=placement.world_size,
        run_dir=run_dir,
        split_id=outcome.split_id if outcome else None,
        paused_at=run_dir.last_epoch() if outcome and outcome.paused and run_dir.has_checkpoint() else None,
    )


def _status(outcome: Outcome | None, failure: Failure | None) -> JobStatus:
    if outcome is None or failure:
        return JobStatus.FAILED
    return JobStatus.STOPPED if outcome.stopped else JobStatus.COMPLETE


def _disk_trouble(run_dir: RunDir, failure: Failure) -> str:
    """What is wrong with the disk, when a rank says so, or had no room for its last words; "" when nothing is."""
    if failure.kind is FailureKind.DISK_FULL:
        return failure.message
    try:
        probe(run_dir.path)
    except OSError as error:  # it is not there when another process has taken the fold
        return explain(error, run_dir.path) if is_disk_error(error) else ""
    return ""


def _may_follow(order: _Order, placement: Placement) -> bool:
    """Whether the processes wait for another job."""
    return order.crew.stays and placement.num_nodes == 1


def _prepare(order: _Order, placement: Placement) -> None:
    order.run_dir.prepare(order.config, resume=order.resume, is_last=not _may_follow(order, placement))
    order.run_dir.add_findings(placement.notices)
    if placement.num_nodes > 1:
        others = f"each of the other {placement.num_nodes - 1} machines"
        others = "the other machine" if placement.num_nodes == 2 else others
        command = command_line(order.run_dir, placement)
        order.on_notice(f"start this on {others} within 10 minutes, from this folder: {command}")


def _follow(order: _Order, placement: Placement) -> int:
    """Have the job start, and pass on every record until it is gone, or its processes wait for another one.

    Asks it to stop when the listener says so. Returns the exit status of its processes.
    """
    run_dir, crew = order.run_dir, order.crew
    # What was recorded before is that of the part which a resumed job does not repeat.
    tail = Tail(run_dir, offset=run_dir.metrics.stat().st_size if run_dir.metrics.exists() else 0)
    is_running, waits, looked = True, False, time.monotonic()
    with Watch(run_dir.path) as watch:
        job = crew.start(order.config, run_dir, placement)
        try:
            while is_running and not waits:
                job.wait(POLL_INTERVAL_S, watch.descriptor)
                watch.clear()
                # Looked at before the last read, so nothing written meanwhile is missed.
                is_running = job.poll() is None
                waits = is_running and _may_follow(order, placement) and run_dir.result.exists()
                for record in tail.read():
                    if order.on_record(record):
                        run_dir.request_stop()
                if crew.cancellation.is_requested():
                    raise JobCancelled
                if time.monotonic() - looked > LOG_LOOK_S:
                    looked = time.monotonic()
                    _cut_logs(order)
        finally:
            if waits:
                crew.keep(run_dir)
            else:
                crew.end_job()
    return job.poll() or 0


def _failure(run_dir: RunDir, placement: Placement, exit_status: int) -> Failure:
    said = None if exit_status == RANK_KILLED else run_dir.load_error()
    return said or _unexplained(run_dir, placement, exit_status)


def _cut_logs(order: _Order) -> None:
    """Empty the logs that have become too long, but for their ends; who writes them appends."""
    for log in order.run_dir.logs.glob("*.log"):
        if (size := log.stat().st_size) > MAX_LOG_BYTES:
            with log.open("r+b") as file:
                file.seek(-LOG_TAIL_BYTES, os.SEEK_END)
                end = file.read()
                file.truncate(0)
            with log.open("ab") as file:
                file.write(b"(%d bytes were cut off here)\n%b" % (size - len(end), end))
            order.on_notice(f"{log} had {size // 2**20} MiB and was cut to its end: the job prints too much")


def _unexplained(run_dir: RunDir, placement: Placement, exit_status: int) -> Failure:
    """No rank could say why. The first act of a rank is to open its log; torchrun's status does not tell a signal."""
    how = f"signal {-exit_status}" if exit_status < 0 else f"exit status {exit_status}"
    if exit_status == RANK_KILLED:
        kind, text, how = FailureKind.SIGNAL, "a rank was killed", "signal 9"
    elif exit_status >= 0 and not any(run_dir.logs.glob("rank_*.log")):
        kind, text = FailureKind.LAUNCH, "the job ended before it began"
    elif exit_status >= 0 and placement.world_size == 1:
        kind, text = FailureKind.USER_CODE, "the job left without a result"
    else:
        kind, text = FailureKind.SIGNAL, "a rank was killed"
    return Failure(kind=kind, message=f"{text} ({how}); see {run_dir.logs}", traceback=_log_tail(run_dir))


def _seen_from_outside(
    failure: Failure | None, run_dir: RunDir, killed: int | None, *, was_stopped: bool
) -> Failure | None:
    """What became of a job that only looks as if it had failed by itself, or had been asked by us to stop."""
    if run_dir.is_preempted() and was_stopped:
        return Failure(kind=FailureKind.PREEMPTION, message="a rank was told to leave by SIGTERM, SIGUSR1 or SIGUSR2")
    if failure is None or killed is None or failure.kind not in (FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE):
        return failure
    num_killed = (oom_kills() or 0) - killed
    if num_killed <= 0:
        return failure
    text = f"the machine had no memory left and the kernel killed {num_killed} of its processes: {failure.message}"
    return replace(failure, kind=FailureKind.OOM, message=text)


def _log_tail(run_dir: RunDir) -> str:
    log = run_dir.log("agent")
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""


def _did_not_start(result: TrialResult) -> bool:
    return result.failure is not None and result.failure.kind in {FailureKind.DISTRIBUTED_START, FailureKind.LAUNCH}
