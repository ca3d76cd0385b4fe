"""The command line end to end: real sweeps of real jobs, and what they leave in the study, in MLflow and on disk."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from hpo.definition import load_definition
from hpo.storage import open_storage
from hpo.study import open_study, revive
from tests.integration.conftest import CHECKOUT, alive, kill_with_undertaker, ranks_under, run_hpo, start_hpo
from training.run_dir import Event, Outcome, RunDir

TRAIN = str(CHECKOUT / "config" / "train.yaml")

STORAGE = "sqlite:///runs/studies.db"


def mlflow_runs(study: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own use of SQLAlchemy is deprecated
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{Path.cwd()}/runs/mlflow.db")  # absolute: MLflow remembers stores by URI
        experiment = client.get_experiment_by_name(study)
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=1000))


def trials(study: str = "digits") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=STORAGE).trials


def outcomes(workplace: Path) -> list[Outcome]:
    found = [
        RunDir(path.parent).load_result() for path in sorted(workplace.glob("runs/digits/trial_*/fold_*/result.json"))
    ]
    return [outcome for outcome in found if outcome]


@pytest.mark.quick
def test_a_continued_sweep_has_the_same_folds_in_the_study_in_mlflow_and_on_disk(swept: Path) -> None:
    told = trials()
    assert [trial.state.name for trial in told] == ["COMPLETE"] * 3
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in told)
    scores = [outcome.metrics["accuracy"] for outcome in outcomes(swept)]
    assert scores == [score for trial in told for score in trial.user_attrs["hpo:fold_scores"]]
    assert [trial.value for trial in told] == [sum(scores[i : i + 2]) / 2 for i in (0, 2, 4)]
    runs = mlflow_runs("digits")
    kinds = Counter(run.data.tags["hpo.kind"] for run in runs)
    del kinds["job"]  # train-best, where its test came before
    assert kinds == {"study": 1, "trial": 3, "fold": 6}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not ranks_under(swept)


def test_a_sweep_that_has_its_trials_starts_no_other(swept: Path) -> None:
    again = run_hpo("sweep", "--study", "digits", "--trials", "3", "--json")
    assert "started" not in again.stderr
    best = json.loads(again.stdout)
    assert best["interval"]["low"] < best["interval"]["mean"] < best["interval"]["high"]
    assert best["interval"]["mean"] == max(trial.value for trial in trials())
    assert Path(best["config"]).is_file()


@pytest.mark.quick
def test_the_test_split_is_in_no_fold(swept: Path) -> None:
    [path] = swept.glob("runs/cache/data-*/folds-*.npy")
    kept = int((np.load(path)[0] >= 0).sum())
    assert [outcome.train_samples + outcome.eval_samples for outcome in outcomes(swept)] == [kept] * 6 == [240] * 6


def test_a_changed_study_is_refused_with_the_difference(swept: Path) -> None:
    refused = run_hpo("sweep", "--study", "digits", "--set", "training.epochs=1", status=2)
    assert "config.training.epochs: 2 -> 1" in refused.stderr
    assert "Traceback" not in refused.stderr
    folds = run_hpo("sweep", "--study", "digits", "--folds", "3", status=2)
    assert "config.cross_validation.folds: 2 -> 3" in folds.stderr


def test_train_best_twice_is_one_model_to_the_bit_and_says_how_to_get_it(swept: Path) -> None:
    first, second = (json.loads(run_hpo("train-best", "--study", "digits", "--json").stdout) for _ in range(2))
    assert first["metrics"] == second["metrics"]
    assert first["model"] != second["model"]
    models = [Path(trained["model"], "model.safetensors").read_bytes() for trained in (first, second)]
    assert models[0] == models[1]
    assert [trained["model_uri"] for trained in (first, second)] == ["models:/digits/1", "models:/digits/2"]

    said = run_hpo("train-best", "--study", "digits").stdout
    _, load, fetch = re.split(r"load it:|fetch it:", said)
    for program in (load, fetch):
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    assert Path("model", "model.safetensors").read_bytes() == models[0]


@pytest.mark.quick
def test_a_recorded_fold_run_again_from_its_config_has_the_recorded_score(swept: Path) -> None:
    best = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)
    recorded = swept / "runs" / "digits" / f"trial_{best['number']:04d}" / "fold_1" / "config.yaml"
    replayed = json.loads(run_hpo("train", "--config", str(recorded), "--json").stdout)
    assert replayed["metrics"]["accuracy"] == best["fold_scores"][1]


def test_two_gloo_ranks_per_trial(workplace: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--env", "ci", "--trials", "1")
    assert [trial.state.name for trial in trials()] == ["COMPLETE"]
    assert [outcome.world_size for outcome in outcomes(workplace)] == [2, 2]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    wait_until(path.exists, process)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = ("--set", "training.epochs=4000")


def test_an_interrupted_sweep_leaves_nothing_running_and_keeps_the_trial(workplace: Path) -> None:
    process = start_hpo("sweep", "--study", "digits", *LONG)
    wait_for(workplace / "runs/digits/trial_0000/fold_0/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL", "WAITING"]
    assert trials()[1].system_attrs["fixed_params"] == trials()[0].params
    assert {run.info.status for run in mlflow_runs("digits")} == {"KILLED", "FAILED"}


def test_after_kill_9_of_the_sweep_ranks_die_and_the_trial_goes_on_where_it_was(workplace: Path) -> None:
    """To the same scores as without the kill, and what had ended is not trained again."""
    study = workplace / "studies" / "digits.yaml"
    study.write_text(study.read_text() + "resources: {parallel_folds: off}\n")
    options = ("--study", "digits", "--trials", "1", "--set", "training.epochs=400")
    run_hpo("sweep", *options, "--set", "output.root=undisturbed")
    process = start_hpo("sweep", *options)
    first, second = (RunDir(workplace / f"runs/digits/trial_0000/fold_{fold}") for fold in range(2))
    wait_until(lambda: second.last_epoch() > 0, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while ranks_under(workplace) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["RUNNING"]
    kept = first.result.stat().st_mtime_ns
    done = run_hpo("sweep", *options)
    first, second = (RunDir(workplace / f"runs/digits/trial_0001/fold_{fold}") for fold in range(2))
    assert "note: trial 1 goes on where trial 0 was: 1 of 2 folds are done, 1 begun" in done.stderr
    assert first.result.stat().st_mtime_ns == kept
    [start] = [record for record in second.records() if record.event is Event.START][-1:]
    assert start.epoch > 0
    cut_short, whole = trials()
    assert (cut_short.state.name, whole.state.name, whole.params) == ("FAIL", "COMPLETE", cut_short.params)
    [undisturbed] = optuna.load_study(study_name="digits", storage="sqlite:///undisturbed/studies.db").trials
    assert whole.value == undisturbed.value
    assert whole.intermediate_values == undisturbed.intermediate_values
    best = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)
    assert Path(best["config"]) == workplace / "runs/digits/trial_0001/config.yaml"
    assert not [run.data.tags for run in mlflow_runs("digits") if run.info.status == "RUNNING"]


def test_what_ranks_had_started_is_gone_after_kill_9_and_the_next_sweep(workplace: Path) -> None:
    write_task("self.steps == 1 and subprocess.Popen(['sleep', '7654'], start_new_session=True)")
    sweep = ("sweep", "--study", "digits", "--set", "task=own:Task", "--trials", "1")
    killed = start_hpo(*sweep, *LONG)
    wait_until(lambda: bool(alive("sleep", "7654")), killed)
    kill_with_undertaker(killed)
    sleepers = alive("sleep", "7654")
    assert sleepers
    stopped = start_hpo(*sweep, *LONG)
    wait_until(lambda: [trial.state.name for trial in trials()] == ["FAIL", "RUNNING"], stopped)
    assert not set(sleepers) & set(alive("sleep", "7654"))
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=60)


def test_two_sweeps_that_start_together_share_one_budget(workplace: Path) -> None:
    both = [start_hpo("sweep", "--study", "digits", "--trials", "3", "--json") for _ in range(2)]
    ended = [(process.communicate(timeout=240), process.returncode) for process in both]
    for (_, errors), status in ended:
        assert status == 0, errors
    told = [trial for trial in trials() if "hpo:interrupted" not in trial.user_attrs]
    assert [trial.state.name for trial in told] == ["COMPLETE"] * 3
    assert len({str(trial.params) for trial in told}) == 3
    assert len(outcomes(workplace)) == 6


def test_folds_of_a_stopped_trial_agree_in_the_study_in_mlflow_and_on_disk(workplace: Path) -> None:
    study = workplace / "studies" / "digits.yaml"
    text = study.read_text().replace("{float: [1e-3, 1e-1], log: true}", "{choice: [1e-9, 1e-2]}")
    study.write_text(
        text.replace("{epochs: none,", "{epochs: median, startup_trials: 1, audit: 0.0,")
        + "sampler: {name: grid, seed: 0}\nresources: {parallel_folds: off}\n"
    )
    done = run_hpo("sweep", "--study", "digits", "--set", "training.epochs=200")
    first, second = trials()
    assert [(trial.params["optimizer.lr"], trial.state.name) for trial in (first, second)] == [
        (1e-2, "COMPLETE"),
        (1e-9, "PRUNED"),
    ]
    assert "trial 1  PRUNED  fold 0, epoch 1: " in done.stderr
    *seen, verdict = second.intermediate_values
    assert seen == [*range(1, len(seen) + 1)] and len(seen) < 200, "it left before the end of its first fold"
    assert verdict == 401, "what it was told as comes after both folds"
    behind = second.intermediate_values[seen[-1]] - first.intermediate_values[seen[-1]]
    assert second.value == pytest.approx(first.value + behind)
    folds = Counter(run.data.tags["hpo.trial"] for run in mlflow_runs("digits") if run.data.tags["hpo.kind"] == "fold")
    assert folds == {"0": 2, "1": 1}
    assert len(list(workplace.glob("runs/digits/trial_*/fold_*/config.yaml"))) == 3


def test_few_trials_are_trained_to_the_end_and_each_goes_on_from_where_it_was_paused(workplace: Path) -> None:
    study = workplace / "studies" / "digits.yaml"
    text = study.read_text().replace("folds: 2", "folds: 3").replace("epochs: 2", "epochs: 4")
    text = text.replace("{epochs: none, folds: none}", "{audit: 0.0}")
    study.write_text(text + "resources: {max_parallel_trials: 1, devices_per_trial: 1, parallel_folds: off}\n")
    done = run_hpo("sweep", "--study", "digits", "--trials", "5")
    assert "5/5 trials" in done.stderr.splitlines()[-1]
    told, again = trials(), [trial for trial in trials() if "hpo:revives" in trial.user_attrs]
    assert len(told) == 5 + len(again) and again
    assert {trial.state.name for trial in told} <= {"COMPLETE", "PRUNED"}
    for trial in again:
        before = told[trial.user_attrs["hpo:revives"]]
        assert before.state.name == "PRUNED" and before.params == trial.params
        folds = [score for score in before.user_attrs["hpo:fold_scores"] if score is not None]
        assert trial.user_attrs["hpo:fold_scores"][: len(folds)] == folds, "what had ended counts"
        assert f"trial {before.number} is promoted, to " in done.stderr
    scores = [trial.user_attrs["hpo:fold_scores"] for trial in told if trial.state.name == "COMPLETE"]
    assert len(scores) == 1 and None not in scores[0], "of five trials three go on, and one to the end"
    trained = [
        sum(r.event is Event.EVALUATE for r in RunDir(path).records()) for path in workplace.glob("runs/digits/t*/f*")
    ]
    assert sorted(trained) == [2] * 2 + [4] * 5, "epochs: half of a fold of two, a fold of two, and three of the winner"
    [status] = json.loads(run_hpo("status", "--study", "digits", "--json").stdout)
    assert status["trials"]["COMPLETE"] + status["trials"]["PRUNED"] == 5
    best = json.loads(run_hpo("best", "--study", "digits", "--json").stdout)
    assert Path(best["config"]) == workplace / f"runs/digits/trial_{best['number']:04d}/config.yaml"
    assert len(outcomes(workplace)) == sum(len(list(path.glob("fold_*"))) for path in workplace.glob("runs/digits/t*"))
    assert "started" not in run_hpo("sweep", "--study", "digits", "--trials", "5").stderr
    opened = open_study(load_definition("digits"), open_storage("sqlite:///runs/studies.db"))
    left = next(each.number for each in told if each.number not in {one.user_attrs["hpo:revives"] for one in again})
    assert revive(opened, left, **{"hpo:until": [4, 0, 0]})
    study.write_text(study.read_text().replace("{audit: 0.0}", "{folds: none}"))
    run_hpo("sweep", "--study", "digits", "--trials", "5")
    assert (trials()[-1].params, trials()[-1].state.name) == (told[left].params, "COMPLETE"), "no rule pauses it now"


def test_where_a_promoted_trial_fails_the_next_best_comes_to_the_end_and_with_several_at_once(workplace: Path) -> None:
    """The first one of all to begin its second fold does."""
    write_task("if '/fold_1' in os.environ['HPO_JOB_ID'] and not os.path.exists('a'): os.mkdir('a'); raise ValueError")
    study = workplace / "studies" / "digits.yaml"
    text = study.read_text().replace("folds: 2", "folds: 3").replace("{epochs: none, folds: none}", "{audit: 0.0}")
    study.write_text(text + "resources: {max_parallel_trials: 2, devices_per_trial: 1}\n")
    run_hpo("sweep", "--study", "digits", "--trials", "6", "--set", "task=own:Task")
    told = trials()
    [failed] = [trial for trial in told if trial.state.name == "FAIL"]
    assert failed.user_attrs["hpo:failure"]["kind"] == "user_code"
    [winner] = [trial for trial in told if trial.state.name == "COMPLETE"]
    assert winner.params != failed.params and None not in winner.user_attrs["hpo:fold_scores"]
    [status] = json.loads(run_hpo("status", "--study", "digits", "--json").stdout)
    assert status["trials"] | {"COMPLETE": 1, "PRUNED": 4, "FAIL": 1} == status["trials"]
    assert json.loads(run_hpo("best", "--study", "digits", "--json").stdout)["number"] == winner.number


def test_train_best_refuses_a_changed_record_and_data_split_otherwise_than_in_the_search(workplace: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    recorded = workplace / "runs" / "digits" / "trial_0000" / "config.yaml"
    recorded.write_text(recorded.read_text().replace("max_samples: 300", "max_samples: 200"))
    refused = run_hpo("train-best", "--study", "digits", status=2)
    assert f"error: {recorded}: is not what was written" in refused.stderr
    recorded.write_text(recorded.read_text().partition("\n")[2])
    refused = run_hpo("train-best", "--study", "digits", status=2)
    assert "error: the data have changed" in refused.stderr
    assert not list(workplace.glob("runs/digits/best*/model"))


def test_an_interrupted_train_best_says_how_to_go_on_and_stays_one_run(workplace: Path) -> None:
    run_hpo("sweep", "--study", "digits", "--trials", "1")
    recorded = RunDir(workplace / "runs" / "digits" / "trial_0000")
    recorded.write_config(recorded.load_config().with_values({"training.epochs": 1000}))
    started = start_hpo("train-best", "--study", "digits")
    wait_until(lambda: RunDir(workplace / "runs/digits/best").last_epoch() > 0, started)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    _, command = err.strip().splitlines()[-1].split("interrupted; ")
    arguments = shlex.split(command.partition(" goes on from ")[0])
    assert arguments[:-1] == ["hpo", "train-best", "--study", "digits", "--resume"]
    trained = json.loads(run_hpo(*arguments[1:], "--json").stdout)
    assert trained["model_uri"] == "models:/digits/1"
    [best] = [run for run in mlflow_runs("digits") if run.data.tags["hpo.kind"] == "job"]
    assert best.info.status == "FINISHED"


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(workplace: Path) -> None:
    study = workplace / "studies" / "digits.yaml"
    # At the highest rates a training step overflows; at the lowest it does not.
    text = study.read_text().replace("{float: [1e-3, 1e-1], log: true}", "{choice: [1e-2, 1e+38]}")
    text = text.replace("trials: 2", "trials: 2}\nsampler: {name: grid").replace(
        "task:", "optimizer: {name: sgd}\n  task:"
    )
    study.write_text(text)
    done = run_hpo("sweep", "--study", "digits", "--set", "training.max_grad_norm=null")
    states = {trial.params["optimizer.lr"]: trial.state.name for trial in trials()}
    assert states == {1e-2: "COMPLETE", 1e38: "FAIL"}
    [failed] = [trial for trial in trials() if trial.state.name == "FAIL"]
    assert failed.user_attrs["hpo:failure"]["kind"] == "non_finite"
    assert "FAIL  non_finite" in done.stderr


def test_a_sweep_whose_first_trials_all_fail_alike_stops_and_says_why(workplace: Path) -> None:
    write_task("raise ArithmeticError('a bug in step ' + str(self.steps))")
    failed = run_hpo("sweep", "--study", "digits", "--trials", "9", "--set", "task=own:Task", status=1)
    assert len(trials()) in (3, 4)  # the fourth ran beside the third
    assert "ArithmeticError: a bug in step 1" in failed.stderr
    assert not ranks_under(workplace)


@pytest.mark.parametrize(
    ("step", "kind", "says"),
    [
        ("sys.exit(5)", "user_code", "SystemExit: 5"),
        ("os._exit(3)", "user_code", "the job left without a result (exit status 3)"),
        ("os.kill(os.getpid(), 9)", "signal", "a rank was killed (signal 9)"),
        ("self.summarize = lambda totals: {'accuracy': 'high'}", "user_code", "not {'accuracy': 'high'}"),
    ],
)
def test_what_a_task_does_wrong_is_said_in_its_trial(workplace: Path, step: str, kind: str, says: str) -> None:
    write_task(step)
    run_hpo("sweep", "--study", "digits", "--trials", "1", "--set", "task=own:Task", status=1)
    [status] = json.loads(run_hpo("status", "--json").stdout)
    assert status["failures"] == {kind: 1}
    assert says in status["last_failure"]


def test_a_task_that_leaves_in_the_check_of_a_new_study_leaves_no_study(workplace: Path) -> None:
    Path("own.py").write_text("import os\nos._exit(0)\n")
    done = run_hpo("sweep", "--study", "digits", "--set", "task=own:Task", status=2)
    assert "the check ended with status 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not json.loads(run_hpo("status", "--json").stdout)


def write_task(step: str) -> None:
    """A task of one's own, ``own:Task``, whose modules execute `step` in every training step."""
    Path("own.py").write_text(
        "import os, signal, subprocess, sys\n"
        "from training.tasks.image_classification import ImageClassification\n"
        "class Task(ImageClassification):\n"
        "    def build_model(self, config, data):\n"
        "        model = super().build_model(config, data)\n"
        "        model.steps = 0\n"
        "        model.register_forward_pre_hook(act)\n"
        "        return model\n"
        "def act(self, inputs):\n"
        "    self.steps += 1\n"
        f"    {step}\n"
    )


def test_a_mistake_in_the_model_is_found_before_there_is_a_study(workplace: Path) -> None:
    refused = run_hpo("sweep", "--study", "digits", "--set", "model.architecture=resnt", status=2)
    assert (
        "--set model.architecture=resnt: model.architecture: transformers has no model type 'resnt'" in refused.stderr
    )
    assert not (workplace / "runs" / "digits").exists()
    assert json.loads(run_hpo("status", "--json").stdout) == []


def test_status_and_best_work_while_a_sweep_runs(workplace: Path) -> None:
    process = start_hpo("sweep", "--study", "digits", "--trials", "9")
    try:
        wait_for(workplace / "runs/digits/trial_0001/fold_0/metrics.jsonl", process)
        [status] = json.loads(run_hpo("status", "--json").stdout)
        assert status["trials"]["COMPLETE"] >= 1
        assert json.loads(run_hpo("best", "--study", "digits", "--json").stdout)["number"] is not None
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sweep", "--study", "digit"), "did you mean 'digits'?"),
        (("best", "--study", "digits"), "yet; run hpo sweep first"),
        (("sweep", "--study", "digits", "--env", "kagle"), "did you mean 'kaggle'?"),
        (("sweep", "--study", "digits", "--set", "optimizer.lrr=1"), "did you mean 'lr'?"),
        (("sweep", "--study", "digits", "--trials", "0"), "--trials 0: budget.trials must be"),
        (("sweep", "--study", "digits", "--timeout", "soon"), "budget.timeout: 'soon' is not a duration"),
        (("sweep", "--study", "digits", "--storage", "nonsense"), "is not an SQLAlchemy URL"),
        (("train",), "--config FILE"),
        (
            ("train", "--config", TRAIN, "--set", "data.name=no.csv"),
            "data.name: there is no file 'no.csv'",
        ),
        (("validate",), "give either --config FILE or --study STUDY"),
        (
            ("validate", "--config", TRAIN, "--set", "model.hidden_size=13"),
            "not a multiple of the number",
        ),
        (("validate", "--config", TRAIN, "--set", "model.pretrained=./no"), "'./no' cannot be read"),
        (("train", "--config", "nowhere.yaml"), "cannot be read"),
    ],
)
def test_a_mistake_exits_with_2_and_no_traceback(workplace: Path, arguments: tuple[str, ...], says: str) -> None:
    refused = run_hpo(*arguments, status=2)
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_a_sound_configuration_is_told_what_it_will_do(workplace: Path) -> None:
    valid = json.loads(run_hpo("validate", "--config", TRAIN, "--json").stdout)
    assert valid["valid"]
    assert valid["micro_batch_size"] * valid["num_micro_batches"] * valid["world_size"] == 32
    assert "train --config" in run_hpo("validate", "--config", TRAIN).stdout
    assert not list(workplace.glob("runs/train*"))


def test_a_sweep_on_postgresql(workplace: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", postgres_url)
    done = run_hpo("sweep", "--study", "digits", "--trials", "1", "--json")
    assert json.loads(done.stdout)["number"] == 0
    assert not (workplace / "runs" / "studies.db").exists()
    [status] = json.loads(run_hpo("status", "--json").stdout)
    assert {state: count for state, count in status["trials"].items() if count} == {"COMPLETE": 1}


def test_a_sweep_goes_on_without_mlflow(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    done = run_hpo("sweep", "--study", "digits", "--trials", "1")
    assert done.stderr.count("does not take the results") == 1
    assert [trial.state.name for trial in trials()] == ["COMPLETE"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "model.hiden_size=3",
            "--set model.hiden_size=3: model.hiden_size: not a known key; did you mean 'hidden_size'?",
        ),
        ("data.image_column=picture", "picture: data.image_column: 'picture' is not a column of digits"),
        ("training.global_batch_size=1024", "data: 120 training samples are fewer than"),
    ],
)
def test_validate_finds_what_only_data_and_model_show_and_trains_nothing(
    workplace: Path, setting: str, says: str
) -> None:
    refused = run_hpo("validate", "--study", "digits", "--set", setting, status=2)
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (workplace / "runs" / "digits").exists()


def test_no_trial_starts_after_the_timeout_and_the_command_says_how_to_go_on(workplace: Path) -> None:
    done = run_hpo("sweep", "--study", "digits", "--trials", "90", "--timeout", "1s")
    assert 1 <= len(trials()) < 90
    assert not [trial for trial in trials() if not trial.state.is_finished()]
    assert "budget.timeout of 1 s is over" in done.stderr


def test_a_resumed_training_takes_no_other_learning_rate(workplace: Path) -> None:
    run_dir = Path("runs/old")
    (run_dir / "checkpoints" / "epoch_0001").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("{}")
    refused = run_hpo("train", "--resume", str(run_dir), "--set", "optimizer.lr=0.5", status=2)
    assert "--set optimizer.lr=0.5: a resumed training goes on as it began" in refused.stderr
