"""Exports whose checksums fit and that say what cannot be: refused as a whole, with the reason, and nothing is left."""

from __future__ import annotations

import copy
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from hashlib import sha256
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo import fold_ledger
from hpo.cli import main
from hpo.errors import HpoError
from hpo.fold_ledger import Facts, FoldRow, FoldState
from hpo.ledger import LedgerStorage
from hpo.moving.exporting import export_study
from hpo.soundness import first_damage
from hpo.storage import open_storage
from hpo.study import folder_of, load_study
from tests.unit.hpo.moving import bring, study_in

FACTOR = float(os.environ.get("HPO_FUZZ", "1"))
"""How many times as many examples as in the tests."""


@dataclass(frozen=True)
class Export:
    """A study's file, what its study.json says, and a place to import it to."""

    file: Path
    values: dict[str, Any]
    storage: LedgerStorage
    root: Path

    def saying(self, values: Any) -> Path:
        """A file that says `values` instead."""
        with zipfile.ZipFile(self.file) as old:
            members = {info.filename: old.read(info) for info in old.infolist()}
        manifest = json.loads(members.pop("manifest.json"))
        members["study.json"] = json.dumps(values).encode()
        manifest["members"] = {name: sha256(data).hexdigest() for name, data in members.items()}
        target = self.file.with_name("strange.hpo")
        with zipfile.ZipFile(target, "w") as new:
            for name, data in {**members, "manifest.json": json.dumps(manifest).encode()}.items():
                new.writestr(name, data)
        return target


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    folder = tmp_path_factory.mktemp("strange")
    storage = open_storage(f"sqlite:///{folder}/first.db")
    study = study_in(storage, folder / "first")
    facts = Facts(score=0.75, metrics={"accuracy": 0.75}, epochs=2, split_id="same", computed="0")
    row = FoldRow(fold=0, state=FoldState.COMPLETE, attempt=1, trained_by=0, run_dir=str(folder), facts=facts)
    with storage._transaction(1) as session:
        fold_ledger.write(session, 1, row)
    file = export_study(study, folder / "demo.hpo").path
    values = json.loads(zipfile.ZipFile(file).read("study.json"))
    yield Export(file, values, open_storage(f"sqlite:///{folder}/second.db"), folder / "second")


def changed(values: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with another value at `path`."""
    if not path:
        return new
    values = copy.copy(values)
    values[path[0]] = changed(values[path[0]], path[1:], new)
    return values


def places(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all values in `values`, of lists and of rows too."""
    yield path
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def value_at(values: Any, path: tuple[str | int, ...]) -> Any:
    return reduce(getitem, path, values)


def row_of(values: Any, table: str, **what: Any) -> dict[str, Any]:
    return next(row for row in values["tables"][table] if what.items() <= row.items())


def attribute(values: Any, key: str) -> dict[str, Any]:
    return row_of(values, "study_user_attributes", key=key)


Change = Callable[[Any], Any]
STRANGE: dict[str, tuple[Change, str]] = {
    "a new state": (lambda v: v["tables"]["trials"][0].update(state="DREAMING"), r"trials\[0\].state is 'DREAMING'"),
    "a number without end": (lambda v: v["tables"]["trials"][1].update(number=10**30), r"trials\[1\].number is 1000"),
    "no JSON": (lambda v: attribute(v, "hpo:uid").update(value_json="{"), r"study_user_attributes\[\d\].value_json is"),
    "another kind of JSON": (lambda v: attribute(v, "hpo:study").update(value_json="5"), "value_json is '5'"),
    "no tables": (lambda v: v.update(tables=[]), r"tables is \[\]"),
    "a table less": (lambda v: v["tables"].pop("trial_params"), "tables has no trial_params"),
    "a table more": (lambda v: v["tables"].update(more=[]), "tables has 'more' in it"),
    "a column more": (lambda v: v["tables"]["trials"][0].update(mood=1), r"trials\[0\] has 'mood' in it"),
    "a value that is none": (lambda v: v["tables"]["trial_values"][0].update(value={}), r"value is \{\}"),
    "a value that is no number": (lambda v: v["tables"]["trial_values"][0].update(value=None), "FINITE with the value"),
    "a complete trial without": (lambda v: v["tables"]["trial_values"].pop(0), r"trials\[0\] is COMPLETE with values"),
    "a number twice": (lambda v: v["tables"]["trials"][1].update(number=0), r"trials\[1\] has the same number as one"),
    "a trial less": (lambda v: v["tables"]["trials"].pop(2), r"trials\[2\] has number 3: they are to be counted"),
    "of no trial": (lambda v: v["tables"]["trial_values"][0].update(number=99), "is of trial 99, which there is not"),
    "a circle": (
        lambda v: row_of(v, "trial_user_attributes", key="hpo:succeeds", number=5).update(value_json="5"),
        "has trial 5 go on with trial 5",
    ),
    "no attributes": (
        lambda v: v["tables"].update(study_user_attributes=[]),
        "has no hpo:definition, hpo:folder, hpo:uid",
    ),
    "no objective": (lambda v: v["tables"]["study_directions"].pop(), "has the objectives"),
    "a new distribution": (
        lambda v: v["tables"]["trial_params"][0].update(distribution_json='{"name": "Dream"}'),
        r"trial_params\[\d\] is 0.3.* of '{\"name\": \"Dream\"}'",
    ),
    "a new state of a fold": (lambda v: v["tables"]["hpo_folds"][0].update(state="asleep"), "is asleep with the facts"),
    "a fold without facts": (lambda v: v["tables"]["hpo_folds"][0].update(facts="null"), "is complete without facts"),
    "half a character": (lambda v: attribute(v, "hpo:uid").update(key="\ud800"), r"key is '\\ud800'"),
    "another zone": (
        lambda v: v["tables"]["trials"][0].update(datetime_start="2026-01-01T00:00:00+01:00"),
        "datetime_start is '2026-01",
    ),
    "another study": (lambda v: v.update(study="other"), "is of study 'other', and manifest.json of 'demo'"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_strange_is_refused_with_its_place_and_what_to_do(export: Export, tmp_path: Path, what: str) -> None:
    change, reason = STRANGE[what]
    change(values := copy.deepcopy(export.values))
    with pytest.raises(HpoError, match=reason) as caught:
        bring(file := export.saying(values), export.storage, root := tmp_path / "runs")
    assert str(caught.value).startswith(f"{file} says what is not understood here: ")
    assert "it was written by hpo" in str(caught.value) and "upgrade" in str(caught.value)
    assert "\n" not in str(caught.value) and export.storage.get_all_studies() == [] and not root.exists()


def test_the_command_says_so_in_a_line_and_makes_not_even_a_database(
    export: Export, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = STRANGE["a new state"]
    change(values := copy.deepcopy(export.values))
    url, root = f"sqlite:///{tmp_path}/new.db", tmp_path / "runs"
    arguments = ["import", str(export.saying(values)), "--storage", url, "--set", f"output.root={root}"]
    monkeypatch.setattr("sys.argv", ["hpo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    [line] = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and "strange.hpo" in line
    assert [*tmp_path.iterdir()] == []


def test_a_member_that_is_in_a_file_is_refused(export: Export, tmp_path: Path) -> None:
    clashing = export.saying(export.values)
    with zipfile.ZipFile(clashing) as old:
        manifest = json.loads(old.read("manifest.json"))
        members = {info.filename: old.read(info) for info in old.infolist() if info.filename != "manifest.json"}
    name = "trials/trial_0000/config.yaml/inside"
    members[name], manifest["members"][name] = b"", sha256(b"").hexdigest()
    members["trials/trial_0000/config.yaml"] = b""
    manifest["members"]["trials/trial_0000/config.yaml"] = sha256(b"").hexdigest()
    with zipfile.ZipFile(clashing, "w") as new:
        for each, data in {**members, "manifest.json": json.dumps(manifest).encode()}.items():
            new.writestr(each, data)
    with pytest.raises(HpoError, match=r"config.yaml is a file and a folder\); nothing was imported"):
        bring(clashing, export.storage, tmp_path)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 9),
    st.floats(),
    st.text(),
    st.sampled_from(
        ["COMPLETE", "RUNNING", "MINIMIZE", "INF_NEG", "complete", "null", "{}", "[1]", "2026-01-01", "a\0"]
    ),
    st.sampled_from([10**30, 2**31, 1e308, "9999-12-31T23:59:59", "\ufeff{}", "hpo:study", "x" * 600]),
)
values_of_json = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


@settings(
    max_examples=int(80 * FACTOR),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), new=values_of_json)
def test_any_other_value_anywhere_is_refused_or_makes_a_study_that_can_be_read(
    export: Export, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, new: Any
) -> None:
    table = data.draw(st.sampled_from([(), *(("tables", name) for name in export.values["tables"])]))
    inner = export.values["tables"][table[1]] if table else export.values
    path = data.draw(st.sampled_from([*places(inner)] if table else [(), ("study",), ("tables",)]))
    if table and data.draw(st.booleans()):
        alike = [each for each in map(partial(value_at, inner), places(inner)) if isinstance(each, str | int | float)]
        new = data.draw(st.sampled_from([each for each in alike if type(each) is type(value_at(inner, path))] or [new]))
    file, name = export.saying(changed(export.values, (*table, *path), new)), f"s{next(NAMES)}"
    try:
        bring(file, export.storage, export.root, name)
    except HpoError as error:
        assert "says what is not understood here" in str(error), path
        assert name not in {study.study_name for study in export.storage.get_all_studies()}
        return
    study = load_study(name, export.storage)
    assert [trial.number for trial in study.get_trials()] == [*range(7)] and folder_of(study).is_dir()
    assert first_damage(export.storage.engine) is None
    again = export_study(study, file.with_name(f"{name}.hpo"), with_checkpoints=False)
    assert again.trials == 7
    export.storage.delete_study(study._study_id)


NAMES = iter(range(10**9))
