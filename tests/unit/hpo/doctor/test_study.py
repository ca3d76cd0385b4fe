"""What ``hpo doctor`` finds in a study where something is really broken, and finds no more after --fix."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import psutil
import pytest

from hpo.doctor.finding import Finding, Level
from hpo.doctor.study import study_findings
from hpo.ledger import LedgerStorage
from hpo.mlflow_runs import Run, Runs
from hpo.study import OWNER, UID
from hpo.tally import SAMPLED
from tests.unit.hpo.doctor.patients import DYING, finish, fixed, kill_a_sweep, new_study, started, worst
from training.atomic_files import write_atomically


def look(study: optuna.Study, mlflow: str = "off") -> Iterator[Finding]:
    return study_findings(study, mlflow)


def test_trials_of_a_killed_sweep_are_queued_again_and_its_processes_killed(
    database: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    study = new_study(database)
    kill_a_sweep(study, asked=2, told=1)
    lost, over, running = worst(look(study))
    assert (lost.check, over.check, running.check) == ("trials", "processes", "processes")
    assert "trial 1 RUNNING, but evaluated by nobody: process" in lost.text and "is dead" in lost.text
    assert "of trial 0, which nobody evaluates" in over.text
    assert "of trial 1, which nobody evaluates" in running.text
    assert len(no_leftover_processes()) == 2, "looking changes nothing"
    assert fixed(look(study)) == [
        "trial 1 queued again; hpo sweep --study demo goes on with it",
        "the processes of trial 0 were killed",
    ]
    assert worst(look(study)) == []
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "WAITING"]
    assert not no_leftover_processes()


def test_a_trial_that_runs_and_its_processes_are_left_alone(
    sqlite: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    study = new_study(sqlite)
    with started(DYING, sqlite.url, "demo", "2", "1") as (_, line):
        assert line == "ready\n"
        found = list(look(study))
        assert worst(iter(found)) == [], "also not those of a trial that was told this moment"
        assert [each.text for each in found[:2]] == ["1 running, by processes that live", "2 of trials that run"]
        assert fixed(look(study)) == []
        assert len(no_leftover_processes()) == 2
        for each in no_leftover_processes():
            each.kill()


def test_a_running_trial_that_something_else_asked_for_is_told_as_such(sqlite: LedgerStorage) -> None:
    new_study(sqlite)
    other = optuna.storages.RDBStorage(sqlite.url)
    optuna.load_study(study_name="demo", storage=other).ask()
    other.remove_session()
    other.engine.dispose()
    [found] = worst(look(optuna.load_study(study_name="demo", storage=sqlite)))
    assert found.level is Level.NOTE
    assert found.text == "trial 0 RUNNING without a known process; taken for lost in 180 s"


def test_runs_in_mlflow_of_what_is_over_are_told_how_it_ended(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    dead = asdict(replace(sqlite.holder, pid=2**22 + 1))
    for number in range(3):
        study.ask().set_user_attr(OWNER, asdict(sqlite.holder) if number == 2 else dead)
        (Path("runs/demo") / f"trial_{number:04d}").mkdir()
    study.tell(0, 0.75)
    uri, uid = f"sqlite:///{Path('runs/mlflow.db').absolute()}", study.user_attrs[UID]
    runs = Runs(uri, Path("runs/mlartifacts"))
    of_study = Run(experiment="demo", name="demo", identity={"hpo.kind": "study", "hpo.study_uid": uid}, started=1.0)
    runs.write(of_study)
    for number, kind in enumerate(("trial", "fold", "trial")):
        tags = {"hpo.kind": kind, "hpo.study_uid": uid, "hpo.trial": str(number - (kind == "fold"))}
        runs.write(Run(experiment="demo", name=f"{kind} {number}", identity=tags, started=1.0, parent=of_study))
    [found] = worst(look(study, uri))
    assert found.level is Level.PROBLEM
    assert found.text == "2 runs RUNNING of what is over: fold 1, trial 0"
    assert fixed(look(study, uri)) == ["2 runs ended, 0 of them as KILLED"]
    assert worst(look(study, uri)) == []
    assert statuses(runs) == {"demo": "RUNNING", "trial 0": "FINISHED", "fold 1": "KILLED", "trial 2": "RUNNING"}
    told = runs.client.search_runs([runs.client.get_experiment_by_name("demo").experiment_id], "tags.`hpo.trial` = '0'")
    assert {"accuracy": 0.75} in [run.data.metrics for run in told]
    optuna.Trial(study, study.trials[2]._trial_id).set_user_attr(OWNER, dead)
    for number in (1, 2):
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    assert fixed(look(study, uri)) == ["2 runs ended, 0 of them as KILLED"], "the study's, too: nobody sweeps it"
    assert statuses(runs) == {"demo": "KILLED", "fold 1": "KILLED"} | {
        name: state for name, state in statuses(runs).items() if name.startswith("trial")
    }
    assert "RUNNING" not in statuses(runs).values()


def statuses(runs: Runs) -> dict[str, str]:
    found = runs.client.search_runs([runs.client.get_experiment_by_name("demo").experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def test_an_mlflow_that_does_not_answer_is_a_problem_and_one_that_is_not_there_a_note(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    [gone] = worst(look(study, f"sqlite:///{Path('nothing.db').absolute()}"))
    assert (gone.level, gone.check) == (Level.NOTE, "mlflow")
    assert not Path("nothing.db").exists()
    [away] = worst(look(study, "postgresql+psycopg://user:s3cret@127.0.0.1:1/mlflow"))
    assert (away.level, away.check) == (Level.PROBLEM, "mlflow")
    assert "does not answer" in away.text and "s3cret" not in away.text


def test_folders_without_a_trial_can_be_moved_aside_by_the_command_that_is_told(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    Path("runs/demo/trial_0007/fold_0").mkdir(parents=True)
    [found] = worst(look(study))
    assert "1 run folder of no trial of the study" in found.text and "trial_0007" in found.text
    assert found.fix is not None and found.repair is None, "never by itself"
    subprocess.run(found.fix, shell=True, check=True)
    assert worst(look(study)) == []
    assert Path("runs/demo/aside/trial_0007/fold_0").is_dir()


def test_a_study_whose_folder_is_gone(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    (Path("runs/demo/trial_0000")).rmdir()
    Path("runs/demo").rmdir()
    assert [(each.check, each.level) for each in worst(look(study))] == [("folders", Level.PROBLEM)]


def test_what_killed_processes_half_wrote_is_removed_and_what_is_being_written_stays(sqlite: LedgerStorage) -> None:
    study = new_study(sqlite)
    finish(study, 0.1)
    fold = Path("runs/demo/trial_0000/fold_0")
    (fold / ".predictions.x.tmp").mkdir(parents=True)
    names = (".result.json.a.tmp", ".predictions.x.tmp/labels.npy", ".fresh.b.tmp", "metrics.jsonl")
    for name in names:
        (fold / name).write_text("half")
    for path in fold.rglob("*"):
        if path.name != ".fresh.b.tmp":
            os.utime(path, (1.0, 1.0))
    [found] = worst(look(study))
    assert (found.level, found.check) == (Level.NOTE, "temporary files")
    assert fixed(look(study)) == ["2 half-written files removed"]
    assert worst(look(study)) == []
    assert sorted(path.name for path in fold.iterdir()) == [".fresh.b.tmp", "metrics.jsonl"]


def test_the_temporary_files_of_an_atomic_write_are_those_that_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo.doctor.study import _half_written

    monkeypatch.setattr(os, "replace", lambda *names: found.extend(_half_written(tmp_path)))
    found: list[Path] = []
    write_atomically(tmp_path / "result.json", b"{}")
    assert len(found) == 1


def test_trials_with_the_same_hyperparameters_are_noted_unless_one_goes_on_with_the_other(
    sqlite: LedgerStorage,
) -> None:
    study = new_study(sqlite)
    for x in (0.1, 0.2, 0.1):
        finish(study, x)
    [found] = worst(look(study))
    assert found.level is Level.NOTE
    assert found.text.startswith("1 trial had the hyperparameters of an earlier one (trials 0, 2)")
    study = new_study(sqlite, "other")
    finish(study, 0.1)
    again = study.ask()
    again.set_user_attr("hpo:continues", 0)
    again.set_user_attr(SAMPLED, {"x": 0.1})
    study.tell(again, 0.1)
    assert worst(look(study)) == []
