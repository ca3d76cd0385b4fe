"""All checks, one after the other: this machine, the database, and one study or all that are in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hpo.definition import base_job, find_study, has_file
from hpo.doctor.environment import environment_findings
from hpo.doctor.finding import Finding, mended, note
from hpo.doctor.storage import opened, storage_findings
from hpo.doctor.study import study_findings
from hpo.ledger import LedgerStorage
from hpo.opening import again_options, define, storage_url
from hpo.storage import default_url
from hpo.study import DEFINITION, folder_of, load_study, study_names
from hpo.tracking import tracking_uri
from training.config import JobConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What was found in one place."""

    title: str
    findings: list[Finding]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """What is to be looked at."""

    job: JobConfig
    url: str
    study: str | None
    """One study; None for all."""
    has_file: bool
    mlflow: str | None
    """As the study's file says; of all studies, each says for itself."""
    again: str
    """The options that lead here once more."""

    @property
    def root(self) -> Path:
        """The folder of all output."""
        return Path(self.job.output.root).absolute()


def patient(study: str | None, env: str | None, settings: list[str] | None, storage: str | None) -> Patient:
    """What the options of the command mean. Raises ConfigError."""
    again = again_options(study, env, settings, storage)
    if study is not None and has_file(study):
        found = define(study, env, settings or [])
        name, mlflow = found.config.study, found.config.mlflow
        return Patient(
            job=found.job, url=storage_url(found, storage), study=name, has_file=True, mlflow=mlflow, again=again
        )
    job = base_job(environment=env, settings=settings or ())
    url = storage or default_url(Path(job.output.root))
    return Patient(job=job, url=url, study=study, has_file=False, mlflow=None, again=again)


def examine(who: Patient, *, fix: bool = False) -> list[Section]:
    """Everything that was found; with `fix`, after the safe repairs. Each check sees what those before it mended.

    Raises StorageError for a URL that is none, and StudyNotFoundError for a study with neither a file nor trials.
    """
    cure = f"hpo doctor {who.again} --fix".replace("  ", " ")

    def section(title: str, findings: Iterable[Finding]) -> Section:
        seen = [mended(each) if fix else each for each in findings]
        return Section(title=title, findings=[replace(each, fix=cure) if each.repair else each for each in seen])

    storage, found = opened(who.url, f"hpo sweep --study {who.study or 'bert_cv'}")
    if storage is None:
        if who.study is not None and not who.has_file:
            find_study(who.study)
        return [section("environment", environment_findings(who.job)), section("storage", found)]
    try:
        names = study_names(storage)
        if who.study is not None and not who.has_file:
            load_study(who.study, storage)
        studies = {name: load_study(name, storage) for name in ([who.study] if who.study else names) if name in names}
        sections = [section("environment", environment_findings(who.job))]
        folders = [folder_of(load_study(name, storage)) for name in names]
        sections.append(section("storage", [*found, *storage_findings(storage, folders, who.root)]))
        for name, study in studies.items():
            stored = study.user_attrs.get(DEFINITION, {}).get("study", {}).get("mlflow")
            uri = tracking_uri(who.mlflow or stored, folder_of(study).parent)
            sections.append(section(f"study {name}", study_findings(study, uri)))
        if who.study is not None and who.study not in names:
            begin = note("trials", "is not in the storage yet", fix=f"hpo sweep {who.again}")
            sections.append(section(f"study {who.study}", [begin]))
        return sections
    finally:
        _close(storage)


def _close(storage: LedgerStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
