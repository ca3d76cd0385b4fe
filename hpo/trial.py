"""``run_single_trial``: one training job from a resolved configuration to a TrialResult. Everything trains through it.

lease devices -> prepare run dir -> launch -> follow (report, stop) -> collect -> nothing left behind

The folds of a trial may share devices and processes, which a Crew keeps for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from hpo.cancellation import JobCancelled
from hpo.crew import Crew, OnNotice
from hpo.devices import Placement
from hpo.launchers import LaunchCancelled, command_line
from hpo.leases import LeaseCancelled
from hpo.watch import Watch
from training.config import JobConfig
from training.errors import Failure, FailureKind, TrainingError
from training.run_dir import Event, Record, RunDir, Tail

POLL_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 4000
BY_ANOTHER_FOLD = {FailureKind.OOM, FailureKind.USER_CODE, FailureKind.INFRASTRUCTURE}
"""What a fold may fail of because of what an earlier one left in its processes."""
ENDED_JUST_THEN = {FailureKind.SIGNAL, FailureKind.LAUNCH}
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
    Raises DeviceError, OSError (a full disk), and JobCancelled soon after the crew's cancellation asks for it. Called
    by the orchestrator, on a thread that lives as long as the job.
    """
    if crew is None:
        with Crew() as own:
            return run_single_trial(config, run_dir, on_record=on_record, on_notice=on_notice, crew=own, resume=resume)
    try:
        placement = crew.place(config, run_dir, on_notice)
        return _run(config, run_dir, placement, _Parties(on_record, on_notice, crew), resume=resume)
    except BaseException as error:
        crew.dismiss()
        if isinstance(error, LeaseCancelled | LaunchCancelled):
            raise JobCancelled from error
        raise


@dataclass(frozen=True, slots=True)
class _Parties:
    """Who hears of a job, and who does it."""

    on_record: OnRecord
    on_notice: OnNotice
    crew: Crew


def _run(config: JobConfig, run_dir: RunDir, placement: Placement, parties: _Parties, *, resume: bool) -> TrialResult:
    on_notice, was_warm = parties.on_notice, parties.crew.is_warm
    for finding in placement.notices:
        on_notice(str(finding))
    alone = _alone(config, placement)
    attempted = (config.distributed.backend, placement.world_size)
    if attempted in _FAILED_STARTS:
        placement = alone
    parties = replace(parties, on_record=_telling(run_dir, placement, parties))
    result = _attempt(config, run_dir, placement, parties, resume=resume)
    if was_warm and result.failure is not None and result.failure.kind in {*BY_ANOTHER_FOLD, *ENDED_JUST_THEN}:
        result = _attempt_again(result, config, placement, parties, resume=resume)
    if placement.world_size > 1 and placement.num_nodes == 1 and _did_not_start(result):
        assert result.failure is not None
        _FAILED_STARTS.add(attempted)
        on_notice(f"the distributed start failed, falling back to one process: {result.failure.message}")
        result = _attempt(config, run_dir, alone, parties, resume=resume)
    return result


def _alone(config: JobConfig, placement: Placement) -> Placement:
    """One process on the same devices, where the ranks cannot start."""
    threads = placement.threads_per_rank
    if config.distributed.threads_per_rank == "auto":
        threads *= placement.world_size // placement.num_nodes
    return replace(placement, world_size=1, num_nodes=1, gpus=placement.gpus[:1], threads_per_rank=threads)


def _telling(run_dir: RunDir, placement: Placement, parties: _Parties) -> OnRecord:
    """The listener, and what rank 0 found before its first step is told when it starts."""

    def tell(record: Record) -> bool:
        if record.event is Event.START:
            for finding in run_dir.load_findings():
                if finding not in placement.notices:
                    parties.on_notice(str(finding))
        return parties.on_record(record)

    return tell


def _attempt_again(
    result: TrialResult, config: JobConfig, placement: Placement, parties: _Parties, *, resume: bool
) -> TrialResult:
    """In new processes, when those that failed had trained another fold, which may be why."""
    again = _attempt(config, result.run_dir, placement, parties, resume=resume)
    if again.failure is None and result.failure is not None and result.failure.kind in BY_ANOTHER_FOLD:
        parties.crew.stays = False
        parties.crew.end_job()
        parties.on_notice(
            "a fold failed in processes that had trained another one, but not in new ones; each fold gets its own from"
            f" now on, as with resources.processes: per_fold: {result.failure.message}"
        )
    return again


def _attempt(
    config: JobConfig, run_dir: RunDir, placement: Placement, parties: _Parties, *, resume: bool
) -> TrialResult:
    _prepare(config, run_dir, placement, parties, resume=resume)
    started, outcome = time.monotonic(), None
    try:
        config.batch_plan(placement.world_size)
        exit_status = _follow(config, run_dir, placement, parties)
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


def _prepare(config: JobConfig, run_dir: RunDir, placement: Placement, parties: _Parties, *, resume: bool) -> None:
    run_dir.prepare(config, resume=resume, is_last=placement.num_nodes > 1 or not parties.crew.stays)
    run_dir.add_findings(placement.notices)
    if placement.num_nodes > 1:
        others = (
            "the other machine" if placement.num_nodes == 2 else f"each of the other {placement.num_nodes - 1} machines"
        )
        command = command_line(run_dir, placement)
        parties.on_notice(f"start this on {others} within 10 minutes, from this folder: {command}")


def _follow(config: JobConfig, run_dir: RunDir, placement: Placement, parties: _Parties) -> int:
    """Have the job start, and pass on every record until it is gone, or its processes wait for another one.

    Asks it to stop when a listener says so. Returns the exit status of its processes.
    """
    # What was recorded before is that of the part which a resumed job does not repeat.
    tail = Tail(run_dir, offset=run_dir.metrics.stat().st_size if run_dir.metrics.exists() else 0)
    crew, is_running, waits = parties.crew, True, False
    with Watch(run_dir.path) as watch:
        job = crew.start(config, run_dir, placement)
        try:
            while is_running and not waits:
                job.wait(POLL_INTERVAL_S, watch.descriptor)
                watch.clear()
                is_running = (
                    job.poll() is None
                )  # looked at before the last read, so nothing written meanwhile is missed
                waits = is_running and crew.stays and run_dir.result.exists()
                for record in tail.read():
                    if parties.on_record(record):
                        run_dir.request_stop()
                if crew.cancellation.is_requested():
                    raise JobCancelled
        finally:
            crew.keep(run_dir) if waits else crew.end_job()
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
