"""A study to export, with all that one can have, and its import."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from hpo.ledger import LedgerStorage
from hpo.moving.archive import open_archive
from hpo.moving.importing import Imported, import_study
from hpo.storage import artifact_store
from hpo.study import DEFINITION, FAILURE, FOLDER, IDENTITY, UID, interrupt
from hpo.tally import FOLD_SCORES, PAUSED, SAMPLED
from training.checksums import Position
from training.config import JobConfig, dump_sealed
from training.run_dir import Outcome, RunDir

SCORED = Outcome(
    metrics={"accuracy": 0.75},
    stopped=False,
    epochs=2,
    steps=4,
    train_samples=8,
    eval_samples=4,
    split_id="same",
    world_size=1,
    device="cpu",
)
SPACE = {"optimizer.lr": FloatDistribution(1e-5, 1.0, log=True), "name": CategoricalDistribution(["a", None, 3])}
PARAMS = {"optimizer.lr": 0.1 + 0.2, "name": None}


def write_fold(study: optuna.Study, trial: int, fold: int, *, epoch: int = 0, is_over: bool = False) -> RunDir:
    """A run directory, with a checkpoint after `epoch` epochs, or a result."""
    run_dir = RunDir(Path(study.user_attrs[FOLDER]) / f"trial_{trial:04d}" / f"fold_{fold}")
    run_dir.logs.mkdir(parents=True)
    run_dir.predictions.mkdir()
    config = JobConfig.model_validate({"output": {"root": str(run_dir.path.parents[2])}})
    for path in (run_dir.config, run_dir.path.parent / "config.yaml"):
        path.write_bytes(dump_sealed(config.model_dump()))
    run_dir.metrics.write_text('{"event": "train"}\n')
    run_dir.log("rank_0").write_text("not moved")
    (run_dir.predictions / "labels.npy").write_bytes(bytes(range(256)))
    if epoch:
        run_dir.checkpoints.mkdir()
        run_dir.checkpoint(Position(epoch), "00000000").write_bytes(b"weights of " + str(epoch).encode())
    if is_over:
        run_dir.write_result(SCORED)
    return run_dir


def study_in(storage: LedgerStorage, root: Path) -> optuna.Study:
    """Of six trials: complete, paused, failed, cut short, going on with that one and waiting, and running."""
    study = optuna.create_study(study_name="demo", storage=storage, direction="maximize")
    study.set_user_attr(FOLDER, str(root / "demo"))
    study.set_user_attr(UID, "one")
    objective = {"metric": "accuracy", "direction": "maximize"}
    study.set_user_attr(IDENTITY, {"objective": objective, "search_space": {}, "config": {}, "max_epochs": 2})
    definition = {"study": {"study": "demo"}, "job": {"output": {"root": str(root)}}, "environment": "local"}
    definition["settings"] = {}
    study.set_user_attr(DEFINITION, definition)
    told = {"params": PARAMS, "distributions": SPACE, "intermediate_values": {1: math.nan, 2: math.inf, 7: 0.1 + 0.2}}
    attributes: dict[str, Any] = {SAMPLED: PARAMS, FOLD_SCORES: [0.5, 1.0]}
    study.add_trial(create_trial(value=0.75, user_attrs=attributes, **told))
    study.add_trial(create_trial(value=0.5, state=TrialState.PRUNED, user_attrs={**attributes, PAUSED: True}, **told))
    failure = {"kind": "oom", "message": f"see {root}", "rank": 0, "traceback": "", "fold": 0}
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: failure}))
    for _ in range(2):
        trial = study.ask({"optimizer.lr": SPACE["optimizer.lr"]})
        trial.set_user_attr(SAMPLED, trial.params)
        trial.report(0.25, 1)
    interrupt(study, 3)
    config = root / "config.yaml"
    root.mkdir(exist_ok=True)
    config.write_text("a: 1\n")
    upload_artifact(artifact_store=artifact_store(root), file_path=str(config), study_or_trial=study)
    for fold in (0, 1):
        write_fold(study, 0, fold, is_over=True)
    write_fold(study, 1, 0, epoch=2)
    write_fold(study, 2, 0, epoch=2)
    write_fold(study, 3, 0, is_over=True)
    write_fold(study, 3, 1, epoch=1)
    write_fold(study, 4, 0, epoch=1)
    return study


def bring(file: Path, storage: LedgerStorage, root: Path, name: str | None = None) -> Imported:
    with open_archive(file) as archive:
        return import_study(archive, storage, root, name=name)
