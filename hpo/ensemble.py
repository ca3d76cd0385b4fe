"""An ensemble: the models of several folds, trained again from their records, and the average of what they say.

    best_ensemble/                   ensemble.json: the members, and their metrics and the ensemble's on the test split
      trial_0003_fold_0/             run directory of a member, with its model/
      trial_0003_fold_1/ ...

A search saves no models. A fold's ``config.yaml`` repeats it (on one CPU to the bit), so its model is made once more,
from the samples it had. It is scored on the test split, which neither the search nor any member has seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from hpo.errors import HpoError
from hpo.events import JobFinished, JobLabel, JobStarted, Listener, Notice
from hpo.job import Job, run_job
from hpo.occupancy import occupied
from hpo.selection import Choice, Member
from hpo.study import folder_of
from hpo.train_best import Trained
from hpo.trial import JobStatus, TrialResult
from training.atomic_files import write_atomically
from training.config import MEASURES, JobConfig
from training.errors import DataError
from training.predictions import Predictions, load_predictions, score
from training.run_dir import ENSEMBLE, RunDir

FINEST = 2.0**-24
"""The smallest number above zero in the 16 bits that probabilities are kept in."""


def train_ensemble(
    study: optuna.Study, choice: Choice, listen: Listener, *, resume: Path | None = None, launcher: str | None = None
) -> Trained:
    """Train the chosen members again, one after the other, and score their average; or return the first that fails.

    `resume` is the folder of an earlier call: its finished members are taken as they are, an unfinished one goes on
    after its last epoch. `launcher` starts them otherwise than recorded. Raises ConfigError (when the folder of a
    trial is gone or damaged), DataError, and HpoError when `resume` has other members.
    """
    jobs = [(member, _config(member, launcher)) for member in choice.members]
    if resume is not None:
        _require_same(resume, jobs)
    folder = resume.absolute() if resume else RunDir.create(folder_of(study), "best_ensemble").path
    with occupied(folder):
        return _train_members(folder, jobs, choice, study.study_name, listen)


def _train_members(
    folder: Path, jobs: Sequence[tuple[Member, JobConfig]], choice: Choice, study: str, listen: Listener
) -> Trained:
    """Those that are not trained yet, and their average."""
    trained: list[Trained] = []
    for number, (member, config) in enumerate(jobs, start=1):
        listen(Notice(message=f"member {number} of {len(jobs)}: {member}"))
        job = Job(label=JobLabel(study=study), config=config, run_dir=RunDir(folder / member.name))
        trained.append(Trained(label=job.label, config=config, result=_finished(job, listen) or _train(job, listen)))
        if trained[-1].result.failure:
            return trained[-1]
    ensemble = _combined(folder, trained)
    write_atomically(folder / ENSEMBLE, json.dumps(_listed(choice, ensemble), indent=2).encode())
    return ensemble


def _combined(folder: Path, trained: Sequence[Trained]) -> Trained:
    """The members as one training. Raises DataError."""
    kept = [_predictions(member.result.run_dir) for member in trained]
    if not all(np.array_equal(each.samples, kept[0].samples) for each in kept):
        raise DataError(f"members in {folder} were scored on unlike samples; train them again, without --resume")
    first = trained[0]
    result = replace(
        first.result,
        metrics=average_metrics(kept, [name for name in first.result.metrics if name not in MEASURES]),
        duration_s=sum(member.result.duration_s for member in trained),
        run_dir=RunDir(folder),
    )
    return Trained(label=first.label, config=first.config, result=result, members=tuple(trained))


def average_metrics(kept: Sequence[Predictions], names: Sequence[str]) -> dict[str, float]:
    """The metrics `names` of the mean of the members' probabilities, all for the same samples."""
    labels = np.asarray(kept[0].rows["labels"], dtype=np.int64)
    mean = np.mean([np.asarray(each.rows["probabilities"], dtype=np.float64) for each in kept], axis=0)
    of_label = mean[np.arange(len(labels)), labels]
    rows = {"labels": labels, "predicted": mean.argmax(axis=1), "loss": -np.log(np.maximum(of_label, FINEST))}
    return {name: float(score(rows, name)[0]) for name in names}


def _config(member: Member, launcher: str | None) -> JobConfig:
    """As it was run in the search, but for what is kept of it and what it is scored on."""
    changes: dict[str, Any] = {"cross_validation.score": "test", "cross_validation.split_id": member.trial.split_id}
    changes |= {"output.save_model": True, "output.keep_predictions": True, "output.keep_checkpoint": False}
    changes |= {"distributed.launcher": launcher} if launcher else {}
    return RunDir(member.trial.folder / f"fold_{member.fold}").load_config().with_values(changes)


def _require_same(folder: Path, jobs: Sequence[tuple[Member, JobConfig]]) -> None:
    if not folder.is_dir():
        raise HpoError(f"--resume {folder}: there is no such folder")
    wanted = {member.name: config for member, config in jobs}
    found = {path.parent.name: RunDir(path.parent).load_config() for path in folder.glob("*/config.yaml")}
    if (folder / "config.yaml").exists() or any(wanted.get(name) != config for name, config in found.items()):
        raise HpoError(
            f"--resume {folder} is no ensemble of the {len(jobs)} members to train now ({', '.join(wanted)}); give the"
            " --top-k it was begun with, or leave --resume out"
        )


def _finished(job: Job, listen: Listener) -> TrialResult | None:
    """What came of a member that was trained by an earlier call, told as if it were now; None when it was not."""
    outcome = job.run_dir.load_result()
    if outcome is None or outcome.stopped:
        return None
    result = TrialResult(
        status=JobStatus.COMPLETE,
        metrics=outcome.metrics,
        failure=None,
        duration_s=0.0,
        world_size=outcome.world_size,
        run_dir=job.run_dir,
        split_id=outcome.split_id,
    )
    listen(JobStarted(label=job.label, config=job.config, run_dir=job.run_dir))
    listen(JobFinished(label=job.label, result=result))
    return result


def _train(job: Job, listen: Listener) -> TrialResult:
    return run_job(replace(job, resume=job.run_dir.has_checkpoint()), listen)


def _predictions(run_dir: RunDir) -> Predictions:
    found = load_predictions(run_dir.predictions)
    if found is None or not {"labels", "probabilities"} <= found.rows.keys():
        raise DataError(f"{run_dir.predictions} lacks labels or probabilities; train the member again")
    return found


def _listed(choice: Choice, ensemble: Trained) -> dict[str, object]:
    members = [
        {
            "trial": member.trial.number,
            "fold": member.fold,
            "model": f"{member.name}/model",
            "metrics": trained.result.metrics,
        }
        for member, trained in zip(choice.members, ensemble.members, strict=True)
    ]
    return {
        "study": choice.trial.study,
        "task": ensemble.config.task,
        "average": "probabilities",
        "scored_on": "test split",
        "split_id": ensemble.result.split_id,
        "metrics": ensemble.result.metrics,
        "members": members,
    }
