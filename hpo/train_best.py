"""Training outside a search: the winner of a study on all its data, or one configuration by itself."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import optuna

from hpo.errors import HpoError
from hpo.events import Event, JobLabel, JobStarted, Listener
from hpo.job import Job, run_job
from hpo.report import BestTrial, describe_best
from hpo.study import folder_of
from hpo.trial import TrialResult
from training.config import JobConfig, job_config, read_layer
from training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished training outside a search."""

    label: JobLabel
    config: JobConfig
    result: TrialResult


def train_best(
    study: optuna.Study, listen: Listener, *, resume: Path | None = None, launcher: str | None = None
) -> tuple[BestTrial, Trained]:
    """Train the recorded configuration of the best trial on everything but the test split, and score it on that.

    The configuration is the one on disk, as it was run, not sampled or merged again; the data must be split as they
    were for the search. `resume` goes on in a run directory of an earlier call; `launcher` starts it otherwise than
    recorded. Raises NoBestTrialError, ConfigError (when the trial's folder is gone or damaged) and HpoError when
    `resume` trained something else.
    """
    best = describe_best(study)
    recorded = job_config(read_layer(best.folder / "config.yaml"))
    final = {"cross_validation.fold": None, "cross_validation.split_id": best.split_id, "output.save_model": True}
    final |= {"distributed.launcher": launcher} if launcher else {}
    config, label = recorded.with_values(final), JobLabel(study=study.study_name)
    if resume is None:
        return best, _train(config, RunDir.create(folder_of(study), "best"), label, listen)
    if RunDir(resume).load_config() != config:
        raise HpoError(
            f"--resume {resume} trained another configuration than that of trial {best.number}, the best one now;"
            " finish it with hpo train --resume, or leave --resume out"
        )
    return best, _train(config, RunDir(resume), label, listen, resume=True)


def train_one(config: JobConfig, name: str, listen: Listener, *, resume: Path | None = None) -> Trained:
    """Train one configuration in a new run directory under ``train/``, or go on in `resume`."""
    run_dir = RunDir(resume) if resume else RunDir.create(Path(config.output.root) / "train", name)
    return _train(config, run_dir, JobLabel(study="train"), listen, resume=resume is not None)


def _train(config: JobConfig, run_dir: RunDir, label: JobLabel, listen: Listener, *, resume: bool = False) -> Trained:
    result = run_job(Job(label=label, config=config, run_dir=run_dir), listen, resume=resume)
    return Trained(label=label, config=config, result=result)


class LastJob:
    """Remembers where the training is that runs, to say after Ctrl-C how to go on."""

    def __init__(self) -> None:
        self._run_dir: RunDir | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            self._run_dir = event.run_dir

    def go_on(self, command: str) -> str:
        """The command that goes on after the last finished epoch, if there is one."""
        if self._run_dir is None or self._run_dir.last_epoch() == 0:
            return "no epoch was finished; the same command starts again"
        path = shlex.quote(str(self._run_dir.path))
        return f"{command} --resume {path} goes on after epoch {self._run_dir.last_epoch()}"
