"""Whatever a damaged disk makes of run directories and study databases: what was there, or an error that says so.

Never a traceback, and where a checksum can tell never another result. ``scripts/fuzz`` tries many times as many.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpo.definition import load_definition
from hpo.endings import outage
from hpo.errors import HpoError
from hpo.ledger import LedgerStorage
from hpo.moving.importing import _with_root
from hpo.opening import require_resumable
from hpo.reporting.report import report_on
from hpo.reporting.summary import describe_best, describe_status
from hpo.selection import chosen_trial
from hpo.storage import open_storage
from hpo.study import FAILURE, SPLIT_ID, ask, load_study, open_study, study_names
from hpo.tally import FOLD_SCORES
from tests.unit.hpo.cross_validation.folds import going_on, leave
from training.config.sealed import MARK, dump_sealed
from training.errors import ConfigError, Failure, FailureKind, TrainingError
from training.predictions import Predictions, load_predictions, write_predictions
from training.run_dir import Finding, Outcome, RunDir

FACTOR = float(os.environ.get("HPO_FUZZ", "1"))
"""How many times as many examples as in the tests."""
CHECKOUT = Path(__file__).parents[3]
STUDY = """\
study: demo
base: {checkout}/config/train.yaml
config:
  task: image_classification
  data: {{name: digits}}
  model: {{architecture: mlp, hidden_size: 16, num_hidden_layers: 1, dropout: 0.0}}
objective: {{metric: accuracy, direction: maximize}}
cross_validation: {{folds: 2}}
search_space:
  optimizer.lr: {{float: [1e-3, 1e-1], log: true}}
sampler: {{name: random}}
"""


def examples(number: int) -> settings:
    """`number` examples, times $HPO_FUZZ; a busy machine is no failure."""
    ignored = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=int(number * FACTOR), deadline=None, suppress_health_check=ignored)


# What disks, half copies and people do to a file

Damage = Callable[[bytes], bytes]


def cut(share: float) -> Damage:
    return lambda data: data[: int(share * len(data))]


def flip(position: int, bit: int) -> Damage:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        if changed:
            changed[position % len(changed)] ^= 1 << bit
        return bytes(changed)

    return damage


def overwrite(position: int, garbage: bytes) -> Damage:
    def damage(data: bytes) -> bytes:
        at = position % (len(data) + 1)
        return data[:at] + garbage + data[at + len(garbage) :]

    return damage


POSITIONS = st.integers(0, 2**32)
FLIPS = st.builds(flip, POSITIONS, st.integers(0, 7))
DAMAGES = FLIPS | st.one_of(
    st.builds(cut, st.floats(0, 1)),
    st.builds(overwrite, POSITIONS, st.binary(min_size=1, max_size=600) | st.just(bytes(4096))),
    st.binary(max_size=100).map(lambda data: lambda _: data),
)
VALUES = st.sampled_from(
    [None, True, -1, 0, 10**30, 0.5, float("nan"), "", "x", [], [[]], [1], {}, {"a": {}}, "\ud800"]
)


# Run directories


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """What a fold that ended leaves, and one failure."""
    found = leave(tmp_path, 0, 0.1, 0.5, ended=True, saved=2)
    found.add_findings([Finding(key="training.compile", message="has no effect", advice="leave it out")])
    found.write_error(Failure(kind=FailureKind.DATA, message="no", rank=0, traceback="Traceback"))
    rows = {"labels": np.arange(9) % 3, "predicted": np.arange(9) % 2, "probabilities": np.full((9, 3), 1 / 3)}
    write_predictions(found.predictions, Predictions(samples=np.arange(9, dtype=np.int32), rows=rows))
    return found


READERS: dict[str, Callable[[RunDir], Any]] = {
    "result.json": RunDir.load_result,
    "error.json": RunDir.load_error,
    "metrics.jsonl": RunDir.records,
    "findings.jsonl": RunDir.load_findings,
    "config.yaml": RunDir.load_config,
}
SEALED = ("result.json", "metrics.jsonl", "config.yaml")


@pytest.mark.parametrize("name", READERS)
@examples(25)
@given(damage=DAMAGES)
def test_a_damaged_file_of_a_run_is_what_it_was_or_an_error(run_dir: RunDir, name: str, damage: Damage) -> None:
    path, read = run_dir.path / name, READERS[name]
    whole, before = path.read_bytes(), read(run_dir)
    path.write_bytes(damage(whole))
    with contextlib.suppress(TrainingError):
        found = read(run_dir)
        if name == "metrics.jsonl":  # what is cut off was not written yet
            assert found == before[: len(found)]
        elif name in SEALED and (name != "config.yaml" or path.read_bytes().startswith(MARK)):
            assert found == before
    path.write_bytes(whole)


@examples(50)
@given(damage=FLIPS)
def test_a_flipped_bit_changes_no_configuration(run_dir: RunDir, damage: Damage) -> None:
    whole, before = run_dir.config.read_bytes(), run_dir.load_config()
    run_dir.config.write_bytes(damage(whole))
    with contextlib.suppress(TrainingError):
        assert run_dir.load_config() == before
    run_dir.config.write_bytes(whole)


def test_a_training_does_not_go_on_by_a_damaged_configuration(run_dir: RunDir) -> None:
    require_resumable(run_dir.path)
    whole = run_dir.config.read_bytes()
    run_dir.config.write_bytes(whole.replace(b"epochs: 2", b"epochs: 3"))
    with pytest.raises(ConfigError, match="is not what was written"):
        require_resumable(run_dir.path)
    run_dir.config.write_bytes(whole)


def test_an_import_does_not_take_a_damaged_configuration_for_a_whole_one() -> None:
    data = dump_sealed({"seed": 1, "output": {"root": "there"}})
    assert _with_root(data, "here") == dump_sealed({"seed": 1, "output": {"root": "here"}})
    damaged = data.replace(b"seed: 1", b"seed: 2")
    assert _with_root(damaged, "here") == damaged != data


@pytest.mark.parametrize("name", ["result.json", "error.json"])
@examples(25)
@given(key=st.sampled_from(sorted({*Outcome.__slots__, *Failure.__slots__})), value=VALUES)
def test_a_value_of_another_type_is_an_error(run_dir: RunDir, name: str, key: str, value: Any) -> None:
    path, read = run_dir.path / name, READERS[name]
    whole = path.read_bytes()
    values = {each: kept for each, kept in json.loads(whole).items() if each != "crc32"}
    path.write_text(json.dumps(values | {key: value}))
    with contextlib.suppress(TrainingError):
        found = asdict(read(run_dir))
        assert isinstance(found[key], type(values[key])) or (key, value) == ("rank", None) or key == "tolerance"
    path.write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
@examples(10)
@given(damage=DAMAGES)
def test_a_damaged_fold_is_taken_over_as_it_was_or_not_at_all(run_dir: RunDir, name: str, damage: Damage) -> None:
    path = run_dir.path / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    folds = going_on(run_dir.path.parent)
    told = folds.take_over({})
    assert folds.scores in ((0.5, None, None), (None, None, None))
    assert set(told) <= {(0, 1, 0.1), (0, 2, 0.5)}
    path.write_bytes(whole)


@examples(25)
@given(name=st.sampled_from(["labels", "predicted", "probabilities", "samples"]), damage=DAMAGES)
def test_damaged_predictions_are_what_they_were_or_an_error(run_dir: RunDir, name: str, damage: Damage) -> None:
    path = run_dir.predictions / f"{name}.npy"
    before, whole = load_predictions(run_dir.predictions), path.read_bytes()
    path.write_bytes(damage(whole))
    with contextlib.suppress(TrainingError):
        found = load_predictions(run_dir.predictions)
        assert found is not None and before is not None
        assert np.array_equal(found.samples, before.samples)
        assert all(np.array_equal(found.rows[row], before.rows[row]) for row in before.rows)
    path.write_bytes(whole)


# Study databases


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the database of a study: two complete trials, a stopped, a failed and a running one."""
    folder, before = tmp_path_factory.mktemp("swept"), Path.cwd()
    (folder / "demo.yaml").write_text(STUDY.format(checkout=CHECKOUT))
    os.chdir(folder)
    definition = load_definition("demo.yaml", environment="local")
    storage = open_storage(f"sqlite:///{folder}/whole.db")
    study = open_study(definition, storage)
    for value in (0.5, 0.6, 0.1, None, 0.2):
        trial, _ = ask(study, definition)
        tell(study, trial, value)
    close(storage)
    yield folder
    os.chdir(before)


def tell(study: optuna.Study, trial: optuna.Trial, value: float | None) -> None:
    if value is None:
        trial.set_user_attr(FAILURE, asdict(Failure(kind=FailureKind.OOM, message="no memory")))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    trial.report(value, 1)
    if value == 0.2:  # runs
        return
    if value > 0.4:
        trial.set_user_attr(FOLD_SCORES, [value, value])
        trial.set_user_attr(SPLIT_ID, "s")
        return study.tell(trial, value) and None
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def close(storage: LedgerStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def look(path: Path) -> dict[str, Any]:
    """What hpo status, best and report find in the database."""
    storage = open_storage(f"sqlite:///{path}", create=False)
    try:
        found: dict[str, Any] = {"names": study_names(storage)}
        for name in found["names"]:
            study = load_study(name, storage)
            found["status"] = describe_status(study)
            found["best"] = describe_best(study)
            found["cheapest"] = chosen_trial(study, "one-standard-error", None, None)
            found["report"] = report_on(study).rows
        return found
    finally:
        close(storage)


@examples(20)
@given(damage=DAMAGES)
@example(damage=lambda data: b"")
@example(damage=lambda data: data[:4096])
@example(damage=lambda data: data[: len(data) // 2])
def test_a_damaged_database_is_read_or_an_error(swept: Path, damage: Damage) -> None:
    path = swept / "damaged.db"
    for leftover in swept.glob("damaged.db*"):
        leftover.unlink()
    path.write_bytes(damage((swept / "whole.db").read_bytes()))
    try:
        look(path)
    except (HpoError, TrainingError):
        return
    except Exception as error:
        if outage(error) is None:
            raise
