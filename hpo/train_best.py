"""Training outside a search: a trial of a study on all its data, or one configuration by itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna

from hpo.errors import HpoError
from hpo.events import Event, JobLabel, JobStarted, Listener, Notice
from hpo.job import Job, run_job
from hpo.occupancy import occupied
from hpo.selection import Choice
from hpo.study import folder_of
from hpo.trial import TrialResult
from training.config import JobConfig
from training.errors import ConfigError
from training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished training outside a search."""

    label: JobLabel
    config: JobConfig
    result: TrialResult
    members: tuple[Trained, ...] = ()
    """Of an ensemble: then `config` is that of the first, and `result` that of their average."""

    @property
    def model(self) -> Path:
        """Folder of what was saved."""
        return self.result.run_dir.path if self.members else self.result.run_dir.model


def train_best(
    study: optuna.Study, choice: Choice, listen: Listener, *, resume: Path | None = None, launcher: str | None = None
) -> Trained:
    """Train the recorded configuration of the chosen trial on everything but the test split, and score it on that.

    The configuration is the one on disk, as it was run, not sampled or merged again; the data must be split as they
    were for the search. `resume` goes on in a run directory of an earlier call; `launcher` starts it otherwise than
    recorded. Raises ConfigError (when the trial's folder is gone or damaged) and HpoError when `resume` trained
    something else.
    """
    trial = choice.trial
    recorded = RunDir(trial.folder).load_config()
    final = {"cross_validation.fold": None, "cross_validation.split_id": trial.split_id, "output.save_model": True}
    final |= {"distributed.launcher": launcher} if launcher else {}
    config, label = recorded.with_values(final), JobLabel(study=study.study_name)
    if resume is None:
        for path in _begun(folder_of(study), config):
            listen(
                Notice(message=f"{path} has an unfinished training of this; --resume {shlex.quote(str(path))} goes on")
            )
        return train_in(RunDir.create(folder_of(study), "best"), config, label, listen)
    if RunDir(resume).load_config() != config:
        raise HpoError(
            f"--resume {resume} trained another configuration than that of trial {trial.number}, the one to train now;"
            " finish it with hpo train --resume, or leave --resume out"
        )
    return train_in(RunDir(resume), config, label, listen, resume=True)


def _begun(folder: Path, config: JobConfig) -> Iterator[Path]:
    """What a killed process has left of the same training: the newest that has a checkpoint."""
    for path in sorted(folder.glob("best*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True):
        run_dir = RunDir(path.parent)
        with suppress(ConfigError, HpoError), occupied(run_dir.path):
            if run_dir.has_checkpoint() and not run_dir.result.exists() and run_dir.load_config() == config:
                yield run_dir.path
                return


def train_one(config: JobConfig, name: str, listen: Listener, *, resume: Path | None = None) -> Trained:
    """Train one configuration in a new run directory under ``train/``, or go on in `resume`."""
    run_dir = RunDir(resume) if resume else RunDir.create(Path(config.output.root) / "train", name)
    return train_in(run_dir, config, JobLabel(study="train"), listen, resume=resume is not None)


def train_in(run_dir: RunDir, config: JobConfig, label: JobLabel, listen: Listener, *, resume: bool = False) -> Trained:
    """Train `config` in `run_dir`, which is there; a failure is in the result.

    Raises as ``run_single_trial`` does, and HpoError when another process trains there.
    """
    with occupied(run_dir.path):
        result = run_job(Job(label=label, config=config, run_dir=run_dir, resume=resume), listen)
    return Trained(label=label, config=config, result=result)


class LastJob:
    """Remembers where the training is that runs, to say after Ctrl-C how to go on."""

    def __init__(self, *, is_member: bool = False) -> None:
        self._run_dir: RunDir | None = None
        self._is_member = is_member
        """Whether it is one of the folder that holds it, which goes on as a whole."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            self._run_dir = event.run_dir

    def go_on(self, command: str) -> str:
        """The command that goes on from the newest checkpoint, if there is one."""
        if self._run_dir is not None and self._is_member:
            path = shlex.quote(str(self._run_dir.path.parent))
            return f"{command} --resume {path} goes on with {self._run_dir.path.name}"
        if self._run_dir is None or not self._run_dir.has_checkpoint():
            return "there is no checkpoint yet; the same command starts again"
        path = shlex.quote(str(self._run_dir.path))
        return f"{command} --resume {path} goes on from {self._run_dir.position()}"
