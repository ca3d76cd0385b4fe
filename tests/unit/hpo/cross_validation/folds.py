"""The folds of a trial without a training: started, finished, and left behind by another trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpo.criteria import Criteria
from hpo.cross_validation import Folds
from hpo.events import JobLabel
from hpo.job import Job
from hpo.study_config import ConstraintConfig, ObjectiveConfig
from hpo.trial import JobStatus, TrialResult
from training.checksums import Position
from training.config import JobConfig
from training.errors import Failure, FailureKind
from training.run_dir import Event, Outcome, Record, RunDir

BROKEN = Failure(kind=FailureKind.USER_CODE, message="ValueError: no")


def criteria(*metrics: str, **limits: float) -> Criteria:
    """To maximize `metrics`, none of the others above its limit."""
    constraints = [ConstraintConfig(metric=metric, at_most=limit) for metric, limit in limits.items()]
    return Criteria([ObjectiveConfig(metric=metric, direction="maximize") for metric in metrics], constraints)


def folds_of(folder: Path, num_folds: int = 3, on_epoch: Callable[[int, int, float], str] | None = None) -> Folds:
    config = JobConfig.model_validate({"cross_validation": {"folds": num_folds}})
    label = JobLabel(study="demo", trial=7)
    return Folds(config, folder, label, criteria("accuracy"), on_epoch or (lambda fold, epoch, value: ""))


def start(folds: Folds) -> Job:
    """The next fold, as far as a rank gets before it first looks for a request to stop."""
    job = folds.start({})
    job.run_dir.prepare(job.config)
    return job


def start_all(folds: Folds) -> list[RunDir]:
    return [start(folds).run_dir for _ in range(folds.num_left)]


def evaluated(value: float, epoch: int = 1) -> Record:
    return Record(event=Event.EVALUATE, step=10 * epoch, epoch=epoch, time=0.0, values={"accuracy": value})


def result(
    value: float | None,
    status: JobStatus = JobStatus.COMPLETE,
    *,
    split_id: str = "same",
    failure: Failure | None = None,
    paused_at: int | None = None,
) -> TrialResult:
    return TrialResult(
        status=status,
        metrics={} if value is None else {"accuracy": value},
        failure=failure,
        duration_s=1.0,
        world_size=1,
        run_dir=RunDir(Path("anywhere")),
        split_id=split_id,
        paused_at=paused_at,
    )


def failed() -> TrialResult:
    return result(None, JobStatus.FAILED, failure=BROKEN)


def asked_to_stop(run_dirs: list[RunDir]) -> list[bool]:
    return [run_dir.stop.exists() for run_dir in run_dirs]


def leave(folder: Path, fold: int, *values: float, ended: bool, saved: int = 0, **changes: object) -> RunDir:
    """A fold that reported `values`, ended or not, with a checkpoint after `saved` epochs."""
    run_dir = RunDir(folder / f"fold_{fold}")
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    run_dir.prepare(config.with_values({"cross_validation.fold": fold, **changes}))
    for epoch, value in enumerate(values, start=1):
        run_dir.append(evaluated(value, epoch))
    if saved:
        run_dir.checkpoints.mkdir()
        run_dir.checkpoint(Position(saved), "00000000").touch()
    if ended:
        run_dir.write_result(outcome(values[-1]))
    return run_dir


def outcome(value: float, *, stopped: bool = False) -> Outcome:
    return Outcome(
        metrics={"accuracy": value},
        stopped=stopped,
        epochs=2,
        steps=20,
        train_samples=8,
        eval_samples=2,
        split_id="same",
        world_size=1,
        device="cpu",
    )


def going_on(folder: Path) -> Folds:
    config = JobConfig.model_validate({"cross_validation": {"folds": 3}, "training": {"epochs": 2}})
    return Folds(config, folder, JobLabel(study="demo", trial=9), criteria("accuracy"), lambda fold, epoch, value: "")
