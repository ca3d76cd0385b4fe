"""A study is created, continued and found, on every kind of database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from hpo.errors import StudyNotFoundError
from hpo.ledger import ledger_of
from hpo.moving.exporting import export_study
from hpo.opening import open_any, open_existing
from hpo.storage import open_storage
from hpo.study import folder_of, load_study, open_study
from tests.unit.hpo.study.definitions import close, define, evaluate


def test_a_new_study_knows_its_objective_its_folder_and_its_own_id(storage: RDBStorage, folder: Path) -> None:
    study = open_study(define(), storage)
    other = open_study(define(study="other", objective={"metric": "loss", "direction": "minimize"}), storage)
    assert (study.direction.name, study.metric_names) == ("MAXIMIZE", ["accuracy"])
    assert (other.direction.name, other.metric_names) == ("MINIMIZE", ["loss"])
    assert (folder_of(study), folder_of(other)) == (folder / "runs/demo", folder / "runs/other")
    assert study.user_attrs["hpo:uid"] != other.user_attrs["hpo:uid"]


def test_a_study_is_continued_with_everything_it_had(storage: RDBStorage, storage_url: str) -> None:
    first = open_study(define(), storage)
    evaluate(first, define(), 2)
    again = open_storage(storage_url)
    second = open_study(define(), again)
    assert second.user_attrs == first.user_attrs
    assert [trial.params for trial in second.trials] == [trial.params for trial in first.trials]
    close(again)


def test_studies_of_one_name_in_two_databases_do_not_share_a_folder(folder: Path, storage: RDBStorage) -> None:
    elsewhere = open_storage(f"sqlite:///{folder / 'other.db'}")
    folders = [folder_of(open_study(define(), each)) for each in (storage, elsewhere)]
    assert folders == [folder / "runs/demo", folder / "runs/demo-2"]
    close(elsewhere)


def test_a_study_whose_creation_was_cut_short_is_completed(storage: RDBStorage) -> None:
    begun = optuna.create_study(study_name="demo", storage=storage, direction="maximize")
    begun.set_user_attr("hpo:uid", "1234")
    study = open_study(define(), storage)
    assert folder_of(study).is_dir()
    assert evaluate(study, define(), 1)


def test_a_study_that_does_not_exist_is_told_with_those_that_do(storage: RDBStorage) -> None:
    with pytest.raises(
        StudyNotFoundError, match=r"there is no study 'x' in .* \(there: none\); run hpo sweep --study x first"
    ):
        load_study("x", storage)
    open_study(define(study="b"), storage)
    open_study(define(study="a"), storage)
    with pytest.raises(StudyNotFoundError, match=r"\(there: a, b\)"):
        load_study("x", storage)
    assert load_study("a", storage).study_name == "a"


def test_a_study_without_a_file_is_opened_by_what_it_keeps(storage: RDBStorage, storage_url: str) -> None:
    evaluate(open_study(define(settings=("seed=7",)), storage), define(settings=("seed=7",)), 1)
    definition, url, study = open_existing("demo", None, ["output.root=runs"], storage_url)
    assert (definition.config.study, definition.job.seed, url, len(study.trials)) == ("demo", 7, storage_url, 1)
    opened, name, root = open_any("demo", None, None, storage_url)
    assert (opened.get_study_id_from_name("demo"), name, root) == (study._study_id, "demo", Path("runs"))
    close(opened)
    close(ledger_of(study))


def test_an_unknown_study_is_told_with_the_files_and_the_studies_that_there_are(
    storage: RDBStorage, storage_url: str, folder: Path
) -> None:
    open_study(define(), storage)
    (folder / "studies").mkdir()
    (folder / "studies" / "digits.yaml").touch()
    for opening in (open_any, open_existing):
        with pytest.raises(StudyNotFoundError) as caught:
            opening("digit", None, None, storage_url)
        said = str(caught.value)
        assert said.startswith(
            "--study digit: neither a file nor a study in studies/; did you mean 'digits'? (studies in "
        )
        assert said.endswith(": demo)")


def test_an_import_without_the_file_of_the_study_names_what_goes_on_without_it(folder: Path) -> None:
    opened = open_storage(f"sqlite:///{folder}/first.db")
    study = open_study(define(), opened)
    evaluate(study, define(), 1)
    export_study(study, folder / "demo.hpo")
    close(ledger_of(study))
    found = subprocess.run(
        [sys.executable, "-m", "hpo", "import", "demo.hpo", "--storage", f"sqlite:///{folder}/second.db"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{sys.executable} -m hpo worker --study demo" in found.stdout and "sweep" not in found.stdout
    assert "note: hpo sweep needs studies/demo.yaml, which is not in the export; hpo worker does not" in found.stderr
