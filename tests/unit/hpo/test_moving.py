"""Studies that leave one database and folder for another: what arrives, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from sqlalchemy import Column, Integer, MetaData, String, Table, insert

from hpo.errors import HpoError
from hpo.ledger import SUCCEEDS, LedgerStorage, ledger_of
from hpo.moving import exporting, run_dirs, snapshot
from hpo.moving.archive import open_archive
from hpo.moving.exporting import export_study
from hpo.moving.snapshot import Snapshot, settle, take
from hpo.storage import open_storage
from hpo.study import DEFINITION, FOLDER, UID, fold_dir, interrupt, load_study
from hpo.tally import CONTINUES, INTERRUPTED, SAMPLED, tally_of
from tests.unit.hpo.moving import PARAMS, SCORED, SPACE, bring, study_in
from training.run_dir import RunDir

CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Origin:
    """A study, and the file that it was exported to."""

    study: optuna.Study
    root: Path
    file: Path


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    """Shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("origin")
    study = study_in(open_storage(f"sqlite:///{folder}/first.db"), folder / "first")
    return Origin(study, folder / "first", export_study(study, folder / "demo.hpo").path)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """One of a test's own."""
    return study_in(open_storage(f"sqlite:///{tmp_path}/first.db"), tmp_path / "first")


@pytest.fixture
def exported(origin: Origin, tmp_path: Path) -> Path:
    return Path(shutil.copy(origin.file, tmp_path / "demo.hpo"))


@pytest.fixture
def second(tmp_path: Path) -> LedgerStorage:
    """Another database."""
    return open_storage(f"sqlite:///{tmp_path}/second.db")


def facts(taken: Snapshot) -> dict[str, Any]:
    """What must be the same everywhere: all but paths, ids of artifacts and the time of an export."""
    tables = json.loads(json.dumps(taken.tables))
    for row in tables["study_user_attributes"]:
        row["value_json"] = "" if row["key"] in (FOLDER, DEFINITION) else row["value_json"]
    for row in tables["study_system_attributes"]:
        row.update({"key": "artifacts", "value_json": ""} if row["key"].startswith("artifacts:") else {})
    cut_short = {row["number"] for row in tables["trial_user_attributes"] if row["key"] == INTERRUPTED}
    for row in tables["trials"]:
        row["datetime_complete"] = None if row["number"] in cut_short else row["datetime_complete"]
    ordered = {name: sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)) for name, rows in tables.items()}
    return {"study": taken.study, **ordered}


def everything_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())  # a configuration is read without its checksum
    return {path.relative_to(folder).as_posix(): path.read_bytes().split(b" of all below")[-1] for path in found}


def test_a_study_is_the_same_in_postgresql_and_back_in_sqlite(
    origin: Origin, storage_url: str, second: LedgerStorage, tmp_path: Path
) -> None:
    there, study = open_storage(storage_url), origin.study
    first = bring(origin.file, there, tmp_path / "second")
    moved = load_study("demo", there)
    bring(export_study(moved, tmp_path / "again.hpo").path, second, tmp_path / "third")
    settle(was := take(ledger_of(study), "demo"))
    assert facts(was) == facts(take(there, "demo")) == facts(take(second, "demo"))
    assert (first.trials, first.waiting) == (7, 2)
    assert [trial.number for trial in moved.get_trials()] == [*range(7)]
    assert moved.trials[0].params == PARAMS and moved.trials[0].distributions == SPACE
    assert math.isnan(moved.trials[0].intermediate_values[1]) and moved.trials[0].intermediate_values[2] == math.inf
    assert moved.trials[0].datetime_start == study.trials[0].datetime_start
    files = everything_in(tmp_path / "second" / "demo")
    same = {name: data.replace(b"third", b"second") for name, data in everything_in(tmp_path / "third/demo").items()}
    assert files == same
    there.engine.dispose()


def test_a_snapshot_is_of_one_moment(storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = study_in(open_storage(storage_url), tmp_path / "first"), open_storage(storage_url)
    before, read = take(ledger_of(study), "demo"), snapshot._rows

    def change_after(*chosen: Any) -> list[dict[str, Any]]:
        rows = read(*chosen)
        monkeypatch.setattr(snapshot, "_rows", read)
        load_study("demo", other).tell(4, 0.5)
        load_study("demo", other).ask()
        return rows

    monkeypatch.setattr(snapshot, "_rows", change_after)
    assert take(ledger_of(study), "demo") == before
    assert take(ledger_of(study), "demo") != before
    for storage in (other, ledger_of(study)):
        storage.engine.dispose()


def test_what_runs_is_settled_as_the_ledger_would(study: optuna.Study) -> None:
    settle(settled := take(ledger_of(study), "demo"))
    interrupt(study, 4)
    assert facts(settled) == facts(take(ledger_of(study), "demo"))


def test_run_directories_arrive_with_the_checkpoints_that_may_be_needed_and_no_others(
    origin: Origin, second: LedgerStorage, tmp_path: Path
) -> None:
    found = bring(origin.file, second, tmp_path / "second")
    files = everything_in(found.folder)
    checkpoints = {name for name in files if "checkpoints" in name}
    assert checkpoints == {
        f"trial_{name}/checkpoints/epoch_{epoch:04d}-00000000.pt" for name, epoch in GOING_ON.items()
    }
    assert {name.rpartition("/")[2] for name in files.keys() - checkpoints} == {
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "labels.npy",
    }
    assert {name for name in files if name.endswith("labels.npy")} == {
        f"trial_{name}/predictions/labels.npy" for name in ("0000/fold_0", "0000/fold_1", "0003/fold_0")
    }
    for config in found.folder.rglob("config.yaml"):
        assert RunDir(config.parent).load_config().output.root == str(tmp_path / "second")


GOING_ON = {"0001/fold_0": 2, "0003/fold_1": 1, "0004/fold_0": 1}
"""Of the study above: one that is paused, one that another trial goes on with, one that ran."""


def test_without_checkpoints_there_are_none(origin: Origin, tmp_path: Path) -> None:
    found = export_study(origin.study, tmp_path / "small.hpo", with_checkpoints=False)
    assert (found.trials, found.folds, found.checkpoints) == (6, 7, 0)


def test_paths_are_those_of_the_new_place(origin: Origin, second: LedgerStorage, tmp_path: Path) -> None:
    root, study = tmp_path / "second", origin.study
    found = bring(origin.file, second, root)
    moved = load_study("demo", second)
    assert moved.user_attrs[FOLDER] == str(found.folder) == str(root / "demo")
    assert moved.user_attrs[DEFINITION]["job"]["output"]["root"] == str(root)
    assert moved.user_attrs[UID] == "one"
    [before], [after] = get_all_artifact_meta(study), get_all_artifact_meta(moved)
    assert before.artifact_id != after.artifact_id
    assert (root / "artifacts" / after.artifact_id).read_text() == "a: 1\n"


def test_a_trial_that_ran_goes_on_from_its_checkpoint_in_the_copy_and_runs_on_in_the_original(
    origin: Origin, second: LedgerStorage, tmp_path: Path
) -> None:
    bring(origin.file, second, tmp_path / "second")
    moved, study = load_study("demo", second), origin.study
    ran, waits = moved.trials[4], moved.trials[6]
    assert (ran.state, waits.state) == (TrialState.FAIL, TrialState.WAITING)
    assert (waits.user_attrs[SUCCEEDS], waits.user_attrs[CONTINUES]) == (4, 4)
    assert waits.system_attrs["fixed_params"] == ran.user_attrs[SAMPLED]
    assert tally_of(moved).interrupted() == {3, 4}
    assert fold_dir(moved, 4, 0).last_epoch() == 1
    assert study.trials[4].state is TrialState.RUNNING and len(study.trials) == 6
    asked = [moved.ask().number for _ in range(2)]
    assert asked == [5, 6]


def test_another_name_is_another_study_beside_the_first(study: optuna.Study, tmp_path: Path) -> None:
    file, storage = export_study(study, tmp_path / "demo.hpo").path, ledger_of(study)
    before = everything_in(tmp_path / "first")
    with pytest.raises(HpoError, match=r"study 'demo' exists in sqlite:.*: --name NEW imports it under another name"):
        bring(file, storage, tmp_path / "first")
    assert bring(file, storage, tmp_path / "first", "copy").folder == tmp_path / "first" / "copy"
    copy = load_study("copy", storage)
    assert copy.user_attrs[UID] != "one"
    assert copy.user_attrs[DEFINITION]["study"]["study"] == "copy"
    assert before.items() <= everything_in(tmp_path / "first").items()


def test_a_folder_that_is_there_is_left_alone(origin: Origin, second: LedgerStorage, tmp_path: Path) -> None:
    (tmp_path / "second" / "demo").mkdir(parents=True)
    assert bring(origin.file, second, tmp_path / "second").folder == tmp_path / "second" / "demo-2"
    assert everything_in(tmp_path / "second" / "demo") == {}


def test_a_name_that_would_leave_the_output_folder_is_refused(origin: Origin, second: LedgerStorage) -> None:
    with pytest.raises(HpoError, match="cannot be the name of a study"):
        bring(origin.file, second, origin.root, "../elsewhere")


def test_a_file_that_exists_is_not_replaced_and_a_failing_export_leaves_none(
    origin: Origin, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exported.read_bytes()
    with pytest.raises(HpoError, match="exists: give another name"):
        export_study(origin.study, exported)
    assert exported.read_bytes() == before
    monkeypatch.setattr(exporting, "_add_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_study(origin.study, tmp_path / "new.hpo")
    assert not [path for path in tmp_path.iterdir() if "new.hpo" in path.name]


def test_the_later_of_two_exports_to_one_file_does_not_replace_the_earlier(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, add = tmp_path / "demo.hpo", exporting._add_files

    def be_overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(exporting, "_add_files", add)
        export_study(origin.study, file, with_checkpoints=False)
        add(*arguments)

    monkeypatch.setattr(exporting, "_add_files", be_overtaken)
    with pytest.raises(HpoError, match="exists: give another name"):
        export_study(origin.study, file)
    assert [*tmp_path.iterdir()] == [file]
    with open_archive(file) as archive:
        assert not [name for name in archive.members if "checkpoints" in name]


def test_the_next_export_to_a_file_removes_what_a_killed_one_left_and_leaves_one_that_lives(
    origin: Origin, tmp_path: Path
) -> None:
    file = tmp_path / "demo.hpo"
    arguments = ["tests.unit.hpo.exporting", str(ledger_of(origin.study).url), str(file)]
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, cwd=CHECKOUT)
    assert process.stdout is not None and process.stdout.readline() == b"stopped\n"
    [left] = tmp_path.iterdir()
    os.utime(left, (0, 0))
    export_study(origin.study, file)
    assert {*tmp_path.iterdir()} == {file, left}
    process.kill()
    process.communicate()
    with pytest.raises(HpoError, match="exists: give another name"):
        export_study(origin.study, file)
    assert [*tmp_path.iterdir()] == [file]


# While it runs


def test_what_changes_during_an_export_is_not_in_it(
    study: optuna.Study, second: LedgerStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 5 begins after the snapshot and is cut short, and trial 6 takes the folds of trial 3 along."""

    def begin(taken: Snapshot) -> None:
        trial = study.ask()
        trial.set_user_attr(SAMPLED, {})
        interrupt(study, trial.number)
        following = study.ask().number
        for fold in (0, 1):
            source = fold_dir(study, 3, fold).path
            target = source.parents[1] / f"trial_{following:04d}" / source.name
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
        study.tell(4, 0.9)
        settle(taken)

    monkeypatch.setattr(exporting, "settle", begin)
    export_study(study, tmp_path / "demo.hpo")
    found = bring(tmp_path / "demo.hpo", second, tmp_path / "second")
    assert found.trials == 7
    assert RunDir(found.folder / "trial_0003/fold_0").load_result() == SCORED
    assert RunDir(found.folder / "trial_0003/fold_1").last_epoch() == 1


def test_a_fold_that_moves_while_it_is_opened_is_opened_where_it_went(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = run_dirs._open_records

    def move_first(found: run_dirs.OpenFold, opened: Any) -> None:
        original(found, opened)
        if found.trial == 3:
            target = found.run_dir.path.parents[1] / "trial_0005" / found.run_dir.path.name
            target.parent.mkdir(exist_ok=True)
            found.run_dir.path.rename(target)

    monkeypatch.setattr(run_dirs, "_open_records", move_first)
    with run_dirs.open_fold(study, 3, 1, fold_dir(study, 3, 1), has_checkpoint=True) as found:
        assert found is not None
        assert (found.trial, [*found.checkpoint]) == (5, ["checkpoints/epoch_0001-00000000.pt"])


# Damage and malice


def test_a_changed_bit_anywhere_is_refused_or_changes_nothing(exported: Path) -> None:
    file, data, refused = exported, exported.read_bytes(), 0
    with open_archive(file) as archive:
        whole = {name: archive.read(name) for name in archive.members}
    for place in range(0, len(data), 37):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            with open_archive(file) as archive:
                assert {name: archive.read(name) for name in archive.members} == whole
        except HpoError as error:
            assert "nothing was imported" in str(error) or "has format" in str(error)
            refused += 1
    assert refused > len(data) / 37 / 2


def test_a_cut_or_damaged_file_leaves_nothing_behind(exported: Path, second: LedgerStorage, tmp_path: Path) -> None:
    data = exported.read_bytes()
    flipped = data.replace(b"weights of 1", b"weights of 7")
    assert flipped != data
    for damaged in (data[: len(data) // 2], flipped, b"", b"not a zip"):
        exported.write_bytes(damaged)
        with pytest.raises(HpoError, match="nothing was imported"):
            bring(exported, second, tmp_path / "second")
        assert second.get_all_studies() == []
        assert not (tmp_path / "second").exists() or not everything_of_a_study(tmp_path / "second")


def everything_of_a_study(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if not path.name.endswith(".lock")]


def rewritten(file: Path, name: str, *, mode: int = stat.S_IFREG | 0o600, **changes: Any) -> Path:
    """The archive with one more member, which its manifest knows, and with `changes` to that manifest."""
    from hashlib import sha256

    with zipfile.ZipFile(file) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    manifest = json.loads(members.pop("manifest.json"))
    members[name] = b"evil"
    manifest["members"] = {each: sha256(data).hexdigest() for each, data in members.items()}
    target = file.with_name(f"{uuid.uuid4().hex}.hpo")
    with zipfile.ZipFile(target, "w") as new:
        for each, data in {**members, "manifest.json": json.dumps({**manifest, **changes}).encode()}.items():
            info = zipfile.ZipInfo(each)
            info.external_attr = (mode if each == name else 0o100600) << 16
            new.writestr(info, data)
    return target


def test_a_member_that_was_exchanged_is_refused(exported: Path, second: LedgerStorage, tmp_path: Path) -> None:
    with open_archive(exported) as archive:
        members = {**archive.members, "study.json": "0" * 64, "trials/trial_0009/file": "0" * 64}
    with pytest.raises(HpoError, match=r"study.json has changed\); nothing was imported"):
        bring(rewritten(exported, "trials/trial_0009/file", members=members), second, tmp_path / "second")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/tmp/evil",
        "trials/../evil",
        "trials/trial_0001/../../../../evil",
        "trials/trial_0001/fold_0/..",
        "trials/trial_0001//tmp/evil",
        "trials\\trial_0001\\evil",
        "trials/trial_0001/c:evil",
        "artifacts/../../evil",
        "elsewhere/file",
        "trials/trial_0001/",
    ],
)
def test_a_member_that_would_leave_its_folder_is_refused(exported: Path, name: str) -> None:
    refused = pytest.raises(HpoError, match=r"has no place in a study's folder.*nothing was imported")
    with refused, open_archive(rewritten(exported, name)):
        pass


def test_a_link_is_refused(exported: Path) -> None:
    linked = rewritten(exported, "trials/trial_0009/link", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(HpoError, match="has no place"), open_archive(linked):
        pass


def test_a_file_of_another_version_is_refused_with_the_one_that_reads_it(
    exported: Path, second: LedgerStorage, tmp_path: Path
) -> None:
    storage, more = second, "trials/trial_0009/config.yaml"
    with pytest.raises(HpoError, match=r"has format 2, and this hpo reads 1: import it with hpo 9"):
        bring(rewritten(exported, more, format=2, hpo="9"), storage, tmp_path / "second")
    with pytest.raises(HpoError, match=r"whose tables are v9; here they are .*: import it with that version of Optuna"):
        bring(rewritten(exported, more, schema="v9"), storage, tmp_path / "second")


def killed_at(step: str, file: Path, url: str, root: Path) -> None:
    """An import that is killed when it comes to `step`."""
    arguments = [sys.executable, "-m", "tests.unit.hpo.importing", str(file), url, str(root), step]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert process.stdout is not None and process.stdout.readline() == "stopped\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_kill_before_the_end_leaves_nothing_and_the_next_import_clears_up(
    origin: Origin, storage_url: str, tmp_path: Path
) -> None:
    root = tmp_path / "second"
    killed_at("_put_into_place", origin.file, storage_url, root)
    storage = open_storage(storage_url)
    assert storage.get_all_studies() == []
    assert [path.name for path in everything_of_a_study(root)] == [".importing-demo"]
    assert bring(origin.file, storage, root).folder == root / "demo"
    assert {path.name for path in everything_of_a_study(root)} == {"artifacts", "demo"}
    storage.engine.dispose()


# More tables


def test_another_table_of_facts_moves_with_its_trials_and_its_paths(
    study: optuna.Study, second: LedgerStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, storage, there = MetaData(), ledger_of(study), second
    folds = Table(
        "demo_folds",
        metadata,
        Column("trial_id", Integer, primary_key=True),
        Column("fold", Integer, primary_key=True),
        Column("run_dir", String(255)),
    )
    for module in (snapshot, sys.modules["hpo.moving.importing"]):
        monkeypatch.setattr(module, "OF_A_TRIAL", (*snapshot.OF_A_TRIAL, folds))
    optuna.create_study(storage=there).ask()
    for each in (storage, there):
        metadata.create_all(each.engine)
    rows = [
        {"trial_id": 1, "fold": fold, "run_dir": f"{tmp_path}/first/demo/trial_0000/fold_{fold}"} for fold in (0, 1)
    ]
    with storage.engine.begin() as connection:
        connection.execute(insert(folds), rows)
    bring(export_study(study, tmp_path / "demo.hpo").path, there, tmp_path / "second")
    with there.engine.connect() as connection:
        found = connection.execute(folds.select()).all()
    assert [(row.trial_id, row.fold) for row in found] == [(2, 0), (2, 1)]
    assert found[1].run_dir == f"{tmp_path}/second/demo/trial_0000/fold_1"
