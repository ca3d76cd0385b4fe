"""What MLflow shows of a study against what became of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

import optuna
from optuna.trial import TrialState

from hpo.console import counted
from hpo.definition import joined_definition
from hpo.doctor.finding import Finding, note, ok, problem
from hpo.errors import HpoError
from hpo.events import SweepFinished
from hpo.ledger import ledger_of
from hpo.masking import masked
from hpo.mlflow_runs import Runs
from hpo.past import is_left, opening
from hpo.study import DEFINITION, UID, definition_of, folder_of
from hpo.tracking import MlflowTracker

MOST_WRITES = 10
"""A write takes seconds at most, and leaves the rest to the next."""


def mlflow_findings(study: optuna.Study, uri: str) -> Iterator[Finding]:
    """Runs at the tracking URI `uri` (or "off") that look as if they went on, of what is over."""
    if uri == "off":
        yield ok("mlflow", "off")
        return
    runs = Runs(uri, folder_of(study).parent / "mlartifacts")
    if not runs.exists:
        yield note("mlflow", f"there is no {masked(uri)}")
        return
    try:
        shown = _unended(study, runs)
    except Exception as error:  # whatever MLflow, its database or the network raises
        reason = masked(" ".join(str(error).split()))[:300]
        yield problem("mlflow", f"{masked(uri)} does not answer: {reason}; trainings go on without it")
        return
    orphans = _orphans(study, shown)
    if orphans:
        names = ", ".join(sorted(orphans.values())[:8])
        text = f"{counted(len(orphans), 'run')} RUNNING of what is over: {names}"
        yield problem("mlflow", text, repair=lambda: _ended(study, uri, runs))
    else:
        yield ok("mlflow", f"{counted(len(shown), 'run')} RUNNING, as they should" if shown else "no run is RUNNING")


def _unended(study: optuna.Study, runs: Runs) -> dict[str, Mapping[str, str]]:
    return runs.unended(study.study_name, {"hpo.study_uid": study.user_attrs[UID]})


def _orphans(study: optuna.Study, shown: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Names of the runs that nobody will end, by id: of trials that are over or lost, or of a study nobody sweeps."""
    alive = _alive(study)
    return {
        run: tags.get("mlflow.runName", run)
        for run, tags in shown.items()
        if alive is not None and not (alive if "hpo.trial" not in tags else int(tags["hpo.trial"]) in alive)
    }


def _alive(study: optuna.Study) -> Collection[int] | None:
    """The trials of which somebody still writes; None before the first one, when a sweep may be about to begin."""
    lost = {each.number for each in ledger_of(study).held(study._study_id) if each.is_lost}
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
    settled = lost | {trial.number for trial in begun if trial.state.is_finished() and is_left(trial)}
    return {trial.number for trial in begun} - settled if begun else None


def _ended(study: optuna.Study, uri: str, runs: Runs) -> str:
    """Tell MLflow what became of the trials, as the next sweep would; what is RUNNING then ends as KILLED."""
    num_before = len(_orphans(study, _unended(study, runs)))
    if DEFINITION in study.user_attrs:
        _tell(study, uri)
    killed = _orphans(study, _unended(study, runs))
    for run in killed:
        runs.kill(run)
    return f"{counted(num_before, 'run')} ended, {len(killed)} of them as KILLED"


def _tell(study: optuna.Study, uri: str) -> None:
    said = list[str]()
    tracker = MlflowTracker(uri, folder_of(study).parent / "mlartifacts", said.append)
    tracker.hear(opening(joined_definition(definition_of(study)), study), time.time())
    tracker.write()
    if not _alive(study):
        tracker.hear(SweepFinished(interrupted=True), time.time())
    for _ in range(MOST_WRITES):
        if said or not tracker.has_unwritten:
            break
        tracker.write()
    if said:
        raise HpoError(said[0])
