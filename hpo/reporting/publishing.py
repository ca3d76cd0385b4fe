"""A report where people look at a study: one HTML file, optuna-dashboard (notes, plots, artifact) and MLflow.

All say the same, and a second report takes the place of the first. What a person wrote there stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from hpo.definition import StudyDefinition
from hpo.errors import HpoError
from hpo.masking import masked
from hpo.mlflow_runs import Runs
from hpo.reporting.page import page
from hpo.reporting.plots import Plot
from hpo.reporting.report import Report
from hpo.reporting.text import study_note, trial_note
from hpo.storage import artifact_store
from hpo.study import UID, folder_of
from hpo.tracking import tracking_uri
from training.atomic_files import write_atomically

SIGNED = "*By hpo report.*"
"""Ends each note of ours; one without it is a person's."""
MAX_NOTED = 100
"""The best trials that get a note, and the last: each costs reading all that the dashboard keeps of the study."""
STUDY = -1
"""Stands for the study among the numbers of its trials."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where a report is."""

    page: Path
    mlflow: str | None
    """The tracking URI without credentials; None when the study is not in MLflow."""


def publish(
    definition: StudyDefinition,
    study: optuna.Study,
    report: Report,
    notice: Callable[[str], None],
    output: Path | None = None,
) -> Published:
    """Write the page to `output` (in the study's folder when None), and into the study and MLflow.

    MLflow that does not take it is a `notice`. Raises HpoError when there is no folder for `output`.
    """
    path = (output or folder_of(study) / "report.html").absolute()
    if not path.parent.is_dir():
        where = f"--output {path}" if output else "the folder of the study is gone"
        raise HpoError(f"{where}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise HpoError(f"--output {path}: is a folder; give the name of a file in it")
    write_atomically(path, page(report).encode())
    notes = {STUDY: study_note(report.rows, path)}
    notes |= {trial.number: trial_note(study, trial) for trial in _noted(study, report.numbers)}
    notes = {number: f"{text}\n\n{SIGNED}" for number, text in notes.items()}
    write_notes(study, notes)
    keep_plots(study, report.plots)
    attach(study, path, definition.root)
    return Published(page=path, mlflow=_keep_in_mlflow(definition, study, notes, path, notice))


def write_notes(study: optuna.Study, notes: Mapping[int, str]) -> None:
    """Save a note with the study and with trials, by number."""
    study.sampler = optuna.samplers.RandomSampler()  # opening a trial prepares a sampler, and others take their time
    ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
    for number, text in notes.items():
        place = study if number == STUDY else optuna.Trial(study, ids[number])
        there = get_note(place)
        if text != there and (not there or there.endswith(SIGNED)):
            save_note(place, text)


def keep_plots(study: optuna.Study, plots: Sequence[Plot]) -> None:
    """Save the plots with the study."""
    for plot in plots:
        save_plotly_graph_object(study, plot.figure, graph_object_id=plot.name)


def attach(study: optuna.Study, path: Path, root: Path) -> None:
    """Make the file an artifact of the study, in place of one of that name; `root` is the output folder."""
    store = artifact_store(root)
    for known in get_all_artifact_meta(study):
        if known.filename == path.name:
            with path.open("rb") as file:
                store.write(known.artifact_id, file)
            return
    upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study)


def _noted(study: optuna.Study, numbers: Sequence[int]) -> list[FrozenTrial]:
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    best = set(numbers[:MAX_NOTED])
    return [trial for trial in finished if trial.number in best or trial in finished[-MAX_NOTED:]]


def _keep_in_mlflow(
    definition: StudyDefinition,
    study: optuna.Study,
    notes: Mapping[int, str],
    path: Path,
    notice: Callable[[str], None],
) -> str | None:
    uri, tags = tracking_uri(definition.config.mlflow, definition.root), {"hpo.study_uid": study.user_attrs[UID]}
    if uri == "off":
        return None
    runs = Runs(uri, definition.root / "mlartifacts")
    try:
        found = runs.describe(study.study_name, {**tags, "hpo.kind": "study"}, notes, SIGNED, path)
        runs.describe(study.study_name, {**tags, "hpo.kind": "trial"}, notes, SIGNED)
    except Exception as error:  # whatever MLflow, its database or the network raises
        notice(f"MLflow ({masked(uri)}) does not take the report: {masked(' '.join(str(error).split()))[:500]}")
        return None
    return masked(uri) if found else None
