"""A recorded fold, trained again from its record: whether it has its score again, or how it failed.

How far two scores may be apart is recorded with the first (``tolerance`` of ``result.json``): nothing on a CPU, where
the same work gives the same numbers. Where the second ran otherwise (versions, device, ranks) sums are rounded
otherwise, and a sample may fall on the other side: ``ROUNDING`` of the score, or one sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna

from hpo.console import failure_text, number
from hpo.criteria import not_reported, objectives_of
from hpo.errors import HpoError, MismatchError
from hpo.events import JobLabel, Listener
from hpo.study import FAILURE, IDENTITY, SPLIT_ID, fold_dir, folder_name, folder_of, trial_folder
from hpo.train_best import Trained, train_in
from training.errors import Failure, FailureKind
from training.run_dir import ROUNDING, Outcome, RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedFold:
    """A fold of a search, and what came of it."""

    trial: int
    fold: int
    run_dir: RunDir
    metric: str | None
    """The first objective but a time, which is never the same twice."""
    split_id: str | None = None
    outcome: Outcome | None = None
    """Of a fold that ended by itself, or was stopped after it was scored."""
    failure: Failure | None = None

    def __str__(self) -> str:
        return f"fold {self.fold} of trial {self.trial}"

    @property
    def score(self) -> float | None:
        """None where it was not scored, or failed."""
        if self.outcome is None or self.failure is not None:
            return None
        return self.outcome.metrics.get(self.metric or "")


def recorded_fold(study: optuna.Study, trial: int, fold: int) -> RecordedFold:
    """The record of a fold. Raises HpoError when there is none, and DataError when it is damaged."""
    trials = study.get_trials(deepcopy=False)
    if trial >= len(trials):
        known = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise HpoError(f"--trial {trial}: study '{study.study_name}' has no such trial (there: {known})")
    run_dir, attributes = fold_dir(study, trial, fold), trials[trial].user_attrs
    if not run_dir.config.exists():
        there = sorted(path.name[5:] for path in trial_folder(study, trials[trial]).glob("fold_*"))
        known = f"there are those of fold {', '.join(there)}" if there else "there is none of any fold"
        raise HpoError(f"--fold {fold}: trial {trial} has no record of it in {run_dir.path.parent}; {known}")
    metrics = (each["metric"] for each in objectives_of(study.user_attrs[IDENTITY]))
    outcome = run_dir.load_result()
    return RecordedFold(
        trial=trial,
        fold=fold,
        run_dir=run_dir,
        metric=next((name for name in metrics if name != "inference_ms"), None),
        split_id=attributes.get(SPLIT_ID) or (outcome.split_id if outcome else None),
        outcome=outcome,
        failure=_failure(attributes.get(FAILURE, {}), fold) or (None if outcome else run_dir.load_error()),
    )


def _failure(found: dict[str, Any], fold: int) -> Failure | None:
    """What a trial failed of, if it did so in this fold."""
    if found.get("fold") != fold:
        return None
    known = {key: found[key] for key in ("message", "rank", "traceback")}
    return Failure(kind=FailureKind(found["kind"]), **known)


def replay(study: optuna.Study, record: RecordedFold, listen: Listener, *, launcher: str | None = None) -> Trained:
    """Train a fold again as it was recorded, in a new run directory, up to where it was stopped if it was.

    `launcher` starts it otherwise than recorded. Raises ConfigError where its configuration is damaged.
    """
    changes: dict[str, Any] = {"cross_validation.split_id": record.split_id}
    changes |= {"distributed.launcher": launcher} if launcher else {}
    if record.outcome and record.outcome.stopped and record.outcome.epochs:
        changes["output.pause_after"] = record.outcome.epochs
    config, name = record.run_dir.load_config().with_values(changes), f"{folder_name(record.trial)}_fold_{record.fold}"
    run_dir = RunDir.create(folder_of(study) / "replay", name)
    return train_in(run_dir, config, JobLabel(study=study.study_name), listen)


def require_score(record: RecordedFold) -> None:
    """Raises HpoError where there is no score to find again."""
    if record.metric is None:
        raise HpoError("--verify: inference_ms is not the same from run to run; leave --verify out")
    if record.score is None:
        place = record.run_dir.result
        raise HpoError(
            f"--verify: there is no {record.metric} in {place}; bring the record back, or leave --verify out"
        )


def agreement(record: RecordedFold, repeated: Trained) -> str:
    """How well a fold with a score was repeated, for people. Raises MismatchError with both scores when it was not."""
    recorded, replayed, metric = record.outcome, repeated.result.run_dir.load_result(), record.metric
    first, second = record.score, replayed.metrics.get(metric or "", math.nan) if replayed else math.nan
    assert recorded is not None and replayed is not None and first is not None
    differences = _differences(recorded, replayed)
    tolerance = max(recorded.tolerance, ROUNDING, 1 / recorded.eval_samples) if differences else recorded.tolerance
    apart = abs(first - second)
    if not math.isfinite(apart) or apart > tolerance * max(1.0, abs(first)):
        raise MismatchError(
            f"{record} was not repeated: {metric} {second!r}, recorded {first!r} in {record.run_dir.result}"
            f" (tolerance {tolerance:g})\nwhat differs: {'; '.join(differences) or 'nothing'}\n{_advice(differences)}"
        )
    exactly = "exactly" if apart == 0 else f"within {number(tolerance)} (apart by {number(apart)})"
    return f"{record} was repeated {exactly}: {metric} {number(second)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a fold that was trained again."""

    is_sound: bool
    """It did not fail, and has its recorded score if it has one."""
    text: str
    failure: Failure | None = None
    """Of the second time."""


def verdict(record: RecordedFold, repeated: Trained) -> Verdict:
    """Whether a fold was repeated, failures included, for people."""
    if failure := repeated.result.failure or _unusable(record, repeated):
        return Verdict(is_sound=False, text=_failed(record, failure), failure=failure)
    scored = f"{record.metric} {number(repeated.result.metrics.get(record.metric or ''))}"
    if record.failure is not None:
        was = failure_text(record.failure).splitlines()[0]
        return Verdict(is_sound=True, text=f"{record} did not fail this time: {scored}; recorded is {was}")
    if record.score is None:
        return Verdict(is_sound=True, text=f"{record} has no recorded score to compare with: {scored}")
    try:
        return Verdict(is_sound=True, text=agreement(record, repeated))
    except MismatchError as error:
        return Verdict(is_sound=False, text=str(error))


def _unusable(record: RecordedFold, repeated: Trained) -> Failure | None:
    """What a search says of a job that did not fail and has no usable score."""
    value = repeated.result.metrics.get(record.metric or "")
    if record.metric is None or (value is not None and math.isfinite(value)):
        return None
    if value is None:
        return Failure(kind=FailureKind.CONFIG, message=not_reported(record.metric, repeated.result.metrics))
    return Failure(kind=FailureKind.NON_FINITE, message=f"{record.metric} is {value}")


def _failed(record: RecordedFold, failure: Failure) -> str:
    if record.failure is None:
        how = "failed, which it did not when it was recorded"
    elif record.failure.kind == failure.kind:
        how = "failed again"
    else:
        how = f"failed otherwise than recorded ({failure_text(record.failure).splitlines()[0]})"
    return f"{record} {how}\n{failure_text(failure)}"


def _differences(recorded: Outcome, replayed: Outcome) -> list[str]:
    """What was otherwise the second time: ``torch 2.12.0 -> 2.13.0``."""
    old = {**recorded.versions, "device": recorded.device, "ranks": str(recorded.world_size)}
    new = {**replayed.versions, "device": replayed.device, "ranks": str(replayed.world_size)}
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _advice(differences: list[str]) -> str:
    if differences:
        return "install the recorded versions and train on the recorded device to find it again"
    return "the record was changed or the code that computes was, such as a task's; undo that, or search again"
