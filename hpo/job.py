"""One training job under its label: ``run_single_trial``, and the events of its life."""

from __future__ import annotations

from dataclasses import dataclass

from hpo.crew import Crew
from hpo.events import JobFinished, JobLabel, JobProgress, JobStarted, Listener, Notice
from hpo.trial import OnRecord, TrialResult, run_single_trial
from training.config import JobConfig
from training.run_dir import Record, RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to run, and where it leaves what came of it."""

    label: JobLabel
    config: JobConfig
    run_dir: RunDir
    resume: bool = False
    """Go on from the newest checkpoint in `run_dir`."""


def run_job(
    job: Job, listen: Listener, *, on_record: OnRecord = lambda record: False, crew: Crew | None = None
) -> TrialResult:
    """``run_single_trial`` with its events sent to `listen`, also when it is interrupted."""
    result: TrialResult | None = None

    def tell(record: Record) -> bool:
        listen(JobProgress(label=job.label, record=record))
        return on_record(record)

    listen(JobStarted(label=job.label, config=job.config, run_dir=job.run_dir))
    try:
        result = run_single_trial(
            job.config,
            job.run_dir,
            on_record=tell,
            on_notice=lambda text: listen(Notice(message=text)),
            crew=crew,
            resume=job.resume,
        )
    finally:
        listen(JobFinished(label=job.label, result=result, usage=crew.take_usage() if crew else None))
    return result
