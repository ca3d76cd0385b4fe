"""One study: what killed processes left of it, in the database, among the processes, in MLflow and on disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial

from hpo.console import counted
from hpo.doctor.finding import Finding, attempted, listed, note, ok, problem
from hpo.doctor.mlflow_store import mlflow_findings
from hpo.errors import HpoError
from hpo.launchers import job_id_prefix
from hpo.ledger import LEASE_S, NOBODY, Held, Holder, ledger_of
from hpo.silence import Silence
from hpo.study import OWNER, finished_trials, folder_name, folder_of, recover
from hpo.tally import CONTINUES, SAMPLED
from training.job_processes import JOB_ID, kill_processes, processes_of

LEAVING_S = 60.0
"""A sweep that lives ends the processes of a trial within this time after it is over."""
TEMPORARY_S = 3600.0
"""A file that is being written is not so old."""


def study_findings(study: optuna.Study, mlflow: str) -> Iterator[Finding]:
    """Of one study, whose runs are at the tracking URI `mlflow`, or "off"."""
    yield from _trials(study)
    yield from attempted("processes", lambda: _processes(study))
    yield from mlflow_findings(study, mlflow)
    yield from attempted("folders", lambda: _folders(study))
    yield from attempted("temporary files", lambda: _temporary_files(study))
    yield from _duplicates(study)


def _held(study: optuna.Study) -> list[Held]:
    return ledger_of(study).held(study._study_id)


# Trials that nobody evaluates


def _trials(study: optuna.Study) -> Iterator[Finding]:
    held = _held(study)
    lost = [each for each in held if each.is_lost]
    if lost:
        numbers = [each.number for each in lost]
        text = f"{listed(numbers, 'trial')} RUNNING, but evaluated by nobody: {lost[0].why_lost}"
        yield problem("trials", text, repair=lambda: _recovered(study))
    unknown = [each.number for each in held if not each.is_lost and each.holder == NOBODY]
    if unknown:
        text = f"{listed(unknown, 'trial')} RUNNING without a known process; taken for lost in {LEASE_S:.0f} s"
        yield note("trials", text)
    elif not lost:
        yield ok("trials", f"{len(held)} running, by processes that live" if held else "none runs")


def _recovered(study: optuna.Study) -> str:
    silence = Silence()
    numbers = [*recover(study, lost_of=silence.lost)]
    while silence.doubtful:
        time.sleep(1.0)
        numbers += recover(study, lost_of=silence.lost)
    if not numbers:
        return "others were faster"
    again = f"hpo sweep --study {study.study_name}"
    return f"{listed(numbers, 'trial')} queued again; {again} goes on with {'them' if numbers[1:] else 'it'}"


# Processes


def _processes(study: optuna.Study) -> Iterator[Finding]:
    """Those with the job id of a trial that is over, or whose process is dead."""
    running = _pids(study)
    lost = {each.number for each in _held(study) if each.holder.is_dead}
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    leaked = {number: pids for number, pids in running.items() if _is_over(trials.get(number), number in lost)}
    for number, pids in sorted(leaked.items()):
        prefix = job_id_prefix(folder_of(study) / folder_name(number))
        text = f"{_named(pids)} of trial {number}, which nobody evaluates"
        yield problem("processes", text, repair=partial(_killed, prefix, number))
    if not leaked:
        count = sum(map(len, running.values()))
        yield ok("processes", f"{count} of trials that run" if count else "none left behind")


def _pids(study: optuna.Study) -> dict[int, list[int]]:
    """The live processes of the trials of a study, on this machine, by the trial's number."""
    found, prefix = defaultdict[int, list[int]](list), job_id_prefix(folder_of(study))
    for process in processes_of(prefix):
        with contextlib.suppress(psutil.Error, OSError):
            if trial := re.match(r"trial_(\d+)/", process.environ().get(JOB_ID, "").removeprefix(prefix)):
                found[int(trial[1])].append(process.pid)
    return found


def _is_over(trial: FrozenTrial | None, is_lost: bool) -> bool:
    """Whether no process has a reason to work for it any more."""
    if trial is None or is_lost:
        return True
    return trial.state.is_finished() and (_is_owner_dead(trial) or _age_s(trial) > LEAVING_S)


def _is_owner_dead(trial: FrozenTrial) -> bool:
    """Whether the process that evaluated it is known to have ended."""
    owner = trial.user_attrs.get(OWNER)
    return owner is not None and Holder(**owner).is_dead


def _age_s(trial: FrozenTrial) -> float:
    ended = trial.datetime_complete
    return 0.0 if ended is None else (datetime.now() - ended).total_seconds()


def _named(pids: list[int]) -> str:
    return f"process{'es' * (len(pids) != 1)} {', '.join(map(str, pids))}"


def _killed(prefix: str, number: int) -> str:
    if left := kill_processes(prefix):
        raise HpoError(f"{_named(left)} cannot be killed")
    return f"the processes of trial {number} were killed"


# Files


def _folders(study: optuna.Study) -> Iterator[Finding]:
    folder = folder_of(study)
    if not folder.is_dir():
        text = f"{folder} is gone, and with it configurations and predictions; or this is another machine"
        yield problem("folders", text) if study.get_trials(deepcopy=False) else note("folders", text)
        return
    found = [path for path in folder.glob("trial_[0-9]*") if path.is_dir()]  # first: trials come before their folders
    known = {folder_name(trial.number) for trial in study.get_trials(deepcopy=False)}
    strange = sorted(path for path in found if path.name not in known)
    if strange:
        names = ", ".join(path.name for path in strange[:8])
        text = f"{counted(len(strange), 'run folder')} of no trial of the study, in the way of a later one: {names}"
        aside = shlex.quote(str(folder / "aside"))
        yield problem("folders", text, fix=f"mkdir -p {aside} && mv {shlex.join(map(str, strange))} {aside}")
    else:
        yield ok("folders", f"each of {counted(len(found), 'run folder')} has its trial")


def _temporary_files(study: optuna.Study) -> Iterator[Finding]:
    found = [path for path in _half_written(folder_of(study)) if time.time() - _newest(path) > TEMPORARY_S]

    def remove() -> str:
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return f"{counted(len(found), 'half-written file')} removed"

    if found:
        text = f"{counted(len(found), 'half-written file')} of killed processes, such as {found[0]}"
        yield note("temporary files", text, repair=remove)
    else:
        yield ok("temporary files", "none left behind")


def _half_written(folder: Path) -> Iterator[Path]:
    """Files and folders that were to be renamed when they are whole (training/run_dir.py)."""
    for parent, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            if name.startswith(".") and name.endswith(".tmp"):
                yield Path(parent, name)
        folders[:] = [name for name in folders if not name.endswith(".tmp")]


def _newest(path: Path) -> float:
    """When it, or something in it, was last written."""
    written = time.time()  # of one that is gone by now
    with contextlib.suppress(FileNotFoundError):
        written = max(each.stat().st_mtime for each in [path, *path.rglob("*")])
    return written


# Hyperparameters


def _duplicates(study: optuna.Study) -> Iterator[Finding]:
    """Finished trials with the same hyperparameters, but for one that goes on with another."""
    alike = defaultdict[str, dict[int, int]](dict)
    for trial in finished_trials(study):
        root = trial.user_attrs.get(CONTINUES, trial.number)
        alike[_plain(trial.user_attrs.get(SAMPLED, trial.params))].setdefault(root, trial.number)
    groups = [sorted(numbers.values()) for numbers in alike.values() if len(numbers) > 1]
    if groups:
        wasted = sum(len(group) - 1 for group in groups)
        shown = "; ".join(listed(group, "trial") for group in groups[:3])
        text = f"{counted(wasted, 'trial')} had the hyperparameters of an earlier one ({shown})"
        yield note("duplicates", f"{text}: widen the search space, or visit each point once by sampler: {{name: grid}}")
    else:
        yield ok("duplicates", "no two finished trials had the same hyperparameters")


def _plain(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str)
