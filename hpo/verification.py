"""Whether the search can be repeated here: fold 0 of a trial, trained again from its record, has its recorded score.

How far the two may be apart is recorded with the first (``tolerance`` of ``result.json``): nothing on a CPU, where the
same work gives the same numbers. Where the second ran otherwise (versions, device, ranks) sums are rounded otherwise,
and a sample may fall on the other side: ``ROUNDING`` of the score, or one sample.
"""

from __future__ import annotations

import math
from pathlib import Path

import optuna

from hpo.console import number
from hpo.errors import HpoError, MismatchError
from hpo.events import JobLabel, Listener
from hpo.reporting.summary import BestTrial
from hpo.study import folder_of
from hpo.train_best import Trained, train_in
from training.config import job_config, read_layer
from training.run_dir import ROUNDING, Outcome, RunDir


def replay(study: optuna.Study, trial: BestTrial, listen: Listener, *, launcher: str | None = None) -> Trained:
    """Train fold 0 of `trial` again from its recorded configuration, in a new run directory ``verify``.

    `launcher` starts it otherwise than recorded. Raises ConfigError and HpoError when its record is gone or damaged.
    """
    _recorded(trial)
    changes = {"cross_validation.split_id": trial.split_id}
    changes |= {"distributed.launcher": launcher} if launcher else {}
    config = job_config(read_layer(_first_fold(trial).config)).with_values(changes)
    return train_in(RunDir.create(folder_of(study), "verify"), config, JobLabel(study=study.study_name), listen)


def agreement(trial: BestTrial, repeated: Trained) -> str:
    """How well fold 0 of `trial` was repeated, for people. Raises MismatchError with both scores when it was not."""
    recorded, replayed, metric = _recorded(trial), repeated.result.run_dir.load_result(), _repeatable(trial)
    assert replayed is not None
    first, second = recorded.metrics[metric], replayed.metrics[metric]
    differences = _differences(recorded, replayed)
    tolerance = max(recorded.tolerance, ROUNDING, 1 / recorded.eval_samples) if differences else recorded.tolerance
    apart = abs(first - second)
    if not math.isfinite(apart) or apart > tolerance * max(1.0, abs(first)):
        raise MismatchError(
            f"fold 0 of trial {trial.number} was not repeated: {metric} {second!r}, recorded {first!r} in"
            f" {_first_fold(trial).result} (tolerance {tolerance:g})"
            f"\nwhat differs: {'; '.join(differences) or 'nothing'}\nnothing else was trained: {_advice(differences)}"
        )
    exactly = "exactly" if apart == 0 else f"within {number(tolerance)} (apart by {number(apart)})"
    return f"fold 0 of trial {trial.number} was repeated {exactly}: {metric} {number(second)}"


def _first_fold(trial: BestTrial) -> RunDir:
    return RunDir(trial.folder / "fold_0")


def _repeatable(trial: BestTrial) -> str:
    """The first objective but a time, which is never the same twice. Raises HpoError."""
    found = next((each.metric for each in trial.judgements if each.metric != "inference_ms"), None)
    if found is None:
        raise HpoError("--verify: inference_ms is not the same from run to run; leave --verify out")
    return found


def _recorded(trial: BestTrial) -> Outcome:
    outcome = _first_fold(trial).load_result()
    metric = _repeatable(trial)
    if outcome is None or metric not in outcome.metrics:
        path: Path = _first_fold(trial).result
        raise HpoError(f"--verify: there is no {metric} in {path}; bring the record back, or leave --verify out")
    return outcome


def _differences(recorded: Outcome, replayed: Outcome) -> list[str]:
    """What was otherwise the second time: ``torch 2.12.0 -> 2.13.0``."""
    old = {**recorded.versions, "device": recorded.device, "ranks": str(recorded.world_size)}
    new = {**replayed.versions, "device": replayed.device, "ranks": str(replayed.world_size)}
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _advice(differences: list[str]) -> str:
    if differences:
        return "install the recorded versions and train on the recorded device, or leave --verify out"
    return "the record was changed or the code that computes was, such as a task's; undo that, or search again"
