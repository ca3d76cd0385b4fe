"""A sweep's process to be killed: asks for trials of a study, starts a process for each, tells some, then waits.

dying.py URL STUDY ASKED TOLD    prints "ready" when it has asked for ASKED trials, and told the first TOLD of them
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict

import optuna

from hpo.launchers import job_id_prefix
from hpo.ledger import ledger_of
from hpo.storage import open_storage
from hpo.study import OWNER, trial_folder
from hpo.tally import SAMPLED
from training.job_processes import JOB_ID


def main(url: str, name: str, asked: int, told: int) -> None:
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    for number in range(asked):
        trial = study.ask()
        trial.set_user_attr(OWNER, asdict(ledger_of(study).holder))
        trial.set_user_attr(SAMPLED, {"x": trial.suggest_float("x", 0.0, 1.0)})
        folder = trial_folder(study, trial)
        (folder / "fold_0").mkdir(parents=True)
        leaks = {**os.environ, JOB_ID: f"{job_id_prefix(folder / 'fold_0')}1"}
        subprocess.Popen(["sleep", "600"], env=leaks, start_new_session=True, stdout=subprocess.DEVNULL)
        if number < told:
            study.tell(trial, 0.5)
    print("ready", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
