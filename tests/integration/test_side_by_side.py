"""Trials side by side, and sweeps and workers on one study: real processes, whose order is forced and never hoped for.

Jobs run a task of their own that waits, in its first step, for what the test wants to have happened before.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import optuna
import pytest

from hpo.ledger import ledger_of
from hpo.storage import open_storage
from tests.integration.conftest import ranks_under, run_hpo, start_hpo
from tests.integration.test_sweep import LONG, STORAGE, mlflow_runs, trials, wait_until
from training.run_dir import RunDir

RESOURCES = """\
resources: {{max_parallel_trials: {}, devices_per_trial: 1, parallel_folds: {}}}
"""
OWN_TASK = """\
import os, re, time
from pathlib import Path
from training.tasks.image_classification import ImageClassification

class Task(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        model.register_forward_pre_hook(before_step)
        return model

def is_over(trial):
    return Path(f"runs/digits/trial_{{trial:04d}}/fold_1/result.json").exists()

def has_begun(trial):
    return Path(f"runs/digits/trial_{{trial:04d}}/fold_0/metrics.jsonl").exists()

def before_step(model, inputs):
    trial = int(re.search(r"trial_([0-9]+)", os.environ["HPO_JOB_ID"])[1])
    deadline = time.monotonic() + 100
    while not ({condition}):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
"""
OWN = ("--set", "task=own:Task")
SHARED = ("--set", "distributed.share_devices=true")
SWEEP = ("sweep", "--study", "digits")
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no room for two jobs")


def allow(workplace: Path, num_trials: int, parallel_folds: str = "auto", *, mlflow: bool = False) -> None:
    """Have the study run this many trials at a time."""
    study = workplace / "studies" / "digits.yaml"
    off = "" if mlflow else 'mlflow: "off"\n'
    study.write_text(study.read_text() + RESOURCES.format(num_trials, parallel_folds) + off)


def hold_steps_until(condition: str) -> None:
    """Write ``own:Task``: no job gets past its first step before `condition`, in which `trial` is the job's."""
    Path("own.py").write_text(OWN_TASK.format(condition=condition))


def has_begun(trial: int) -> bool:
    return Path(f"runs/digits/trial_{trial:04d}/fold_0/metrics.jsonl").exists()


def wait_for_trials(*numbers: int, of: subprocess.Popen[str]) -> None:
    wait_until(lambda: all(has_begun(number) for number in numbers), of)


def span(trial: int) -> tuple[float, float]:
    """When the trial's first fold started and when its last was scored."""
    folders = Path(f"runs/digits/trial_{trial:04d}").glob("fold_*")
    times = [record.time for folder in folders for record in RunDir(folder).records()]
    return min(times), max(times)


def told() -> list[optuna.trial.FrozenTrial]:
    """Trials that count."""
    return [trial for trial in trials() if "hpo:interrupted" not in trial.user_attrs]


def ended_well(process: subprocess.Popen[str]) -> str:
    """What `process` said until it ended without an error."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    return out + err


# One sweep


@needs_two_cores
def test_trials_overlap_and_each_is_told_with_all_its_folds(workplace: Path) -> None:
    allow(workplace, 2)
    hold_steps_until("has_begun(trial ^ 1)")  # 0 and 1 wait for each other, as do 2 and 3
    run_hpo(*SWEEP, *OWN, "--trials", "4")
    assert [(trial.state.name, len(trial.user_attrs["hpo:fold_scores"])) for trial in trials()] == [("COMPLETE", 2)] * 4
    for first, second in ((0, 1), (2, 3)):
        assert max(span(first)[0], span(second)[0]) < min(span(first)[1], span(second)[1])


@pytest.mark.nightly
@needs_two_cores
def test_a_slow_trial_does_not_keep_a_free_slot_waiting(workplace: Path) -> None:
    allow(workplace, 2)
    hold_steps_until("trial != 0 or is_over(1) and is_over(2)")
    done = run_hpo(*SWEEP, *OWN, "--trials", "4")
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 4
    assert max(span(1)[1], span(2)[1]) < span(0)[1]
    said = [done.stderr.index(f"trial {number}  COMPLETE") for number in (1, 2, 0)]
    assert said == sorted(said)


@needs_two_cores
def test_ctrl_c_with_two_trials_running_leaves_no_process_and_queues_both(workplace: Path) -> None:
    allow(workplace, 2, mlflow=True)
    process = start_hpo(*SWEEP, *LONG, "--trials", "8")
    wait_for_trials(0, 1, of=process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not ranks_under(workplace)
    assert [trial.state.name for trial in trials()] == ["FAIL", "FAIL", "WAITING", "WAITING"]
    interrupted, queued = trials()[:2], trials()[2:]
    assert [trial.system_attrs["fixed_params"] for trial in queued] == [trial.params for trial in interrupted]
    assert {run.info.status for run in mlflow_runs("digits")} == {"KILLED", "FAILED"}
    for number in (0, 1):
        assert err.count(f"trial {number}  FAIL  interrupted; queued again  0/8 trials\n") == 1


# Sweeps and workers


def test_a_sweep_and_two_workers_that_join_it_later_keep_its_budget(workplace: Path) -> None:
    allow(workplace, 2, "off")
    hold_steps_until("Path('go').exists()")
    sweep = start_hpo(*SWEEP, *OWN, *SHARED, "--trials", "9")
    wait_for_trials(0, 1, of=sweep)
    first = start_hpo("worker", "--study", "digits")
    wait_for_trials(2, 3, of=first)
    second = start_hpo("worker", "--study", "digits", "--storage", STORAGE)
    wait_for_trials(4, 5, of=second)
    Path("go").touch()
    for process in (sweep, first, second):
        said = ended_well(process)
    told_by_second = sum(trial.user_attrs["hpo:owner"]["pid"] == second.pid for trial in trials())
    assert f"this worker  evaluated {told_by_second} trials\nstudy        digits\n" in said
    assert "\nbest         0." in said
    assert [trial.state.name for trial in told()] == ["COMPLETE"] * 9
    assert all(len(trial.user_attrs["hpo:fold_scores"]) == 2 for trial in told())
    owners = [trial.user_attrs["hpo:owner"]["pid"] for trial in trials()[:6]]
    assert owners == [pid for process in (sweep, first, second) for pid in (process.pid, process.pid)]
    assert not ranks_under(workplace)


SHORT_LEASE = "import hpo.ledger; hpo.ledger.LEASE_S = 6.0"
OF_ANOTHER_MACHINE = """
import socket; socket.gethostname = lambda: "another"
import hpo.study; hpo.study.kill_processes = lambda job_id: []  # it sees no process of ours
"""


def test_a_sweep_that_comes_back_after_another_machine_took_its_trial_changes_nothing(workplace: Path) -> None:
    allow(workplace, 1, "off")
    hold_steps_until("trial > 0 or Path('go').exists()")
    lost = start_hpo(*SWEEP, *OWN, *SHARED, "--trials", "1", first=SHORT_LEASE)
    wait_for_trials(0, of=lost)
    lost.send_signal(signal.SIGSTOP)
    study = optuna.load_study(study_name="digits", storage=open_storage(STORAGE))
    wait_until(lambda: ledger_of(study).held(study._study_id)[0].is_expired, lost)
    taker = start_hpo("worker", "--study", "digits", first=SHORT_LEASE + OF_ANOTHER_MACHINE)
    assert "note: trial 1 goes on where trial 0 was" in ended_well(taker)
    files = [path for path in Path("runs/digits/trial_0001").rglob("*") if path.is_file()]
    taken = {path: path.read_bytes() for path in files if path.suffix != ".log"}  # those, the rank has open
    assert ranks_under(workplace / "runs/digits/trial_0000"), "the rank does not know"
    Path("go").touch()
    wait_until(lambda: not ranks_under(workplace / "runs/digits/trial_0000"), lost)
    lost.send_signal(signal.SIGCONT)
    assert "trial 0  FAIL  it was ended from outside" in ended_well(lost)
    assert [trial.state.name for trial in trials()] == ["FAIL", "COMPLETE"]
    assert {path: path.read_bytes() for path in taken} == taken
    assert not list(Path("runs/digits").glob("trial_0000/fold_*/result.json"))
    assert not ranks_under(workplace)


def test_a_worker_that_is_killed_costs_the_study_nothing(workplace: Path) -> None:
    allow(workplace, 1, "off")
    hold_steps_until("Path('go').exists()")
    sweep = start_hpo(*SWEEP, *OWN, *SHARED, "--trials", "3")
    wait_for_trials(0, of=sweep)
    worker = start_hpo("worker", "--study", "digits")
    wait_for_trials(1, of=worker)
    worker.kill()
    worker.communicate()
    Path("go").touch()
    assert "trial 1  FAIL  its process ended; queued again" in ended_well(sweep), "without another sweep"
    assert [trial.state.name for trial in told()] == ["COMPLETE"] * 3
    again = [trial.params for trial in told() if trial.user_attrs.get("hpo:continues") == 1]
    assert again == [trials()[1].params], "it was evaluated once, whenever it was its turn"
    assert not ranks_under(workplace)


@pytest.mark.nightly
@needs_two_cores
def test_a_second_sweep_on_the_same_devices_says_who_holds_them_and_goes_on_when_they_are_free(workplace: Path) -> None:
    allow(workplace, 1, "off")
    hold_steps_until("Path('go').exists()")
    first = start_hpo(*SWEEP, *OWN, "--trials", "2")
    wait_for_trials(0, of=first)
    second = start_hpo(*SWEEP, *OWN, "--trials", "2")
    assert second.stderr is not None
    waits = next((line for line in second.stderr if "waiting for" in line), "")
    assert f"pid {first.pid} " in waits and "sweep --study digits" in waits and " holds " in waits
    assert "distributed.share_devices" in waits
    assert not has_begun(1)
    Path("go").touch()
    ended_well(first)
    ended_well(second)
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 2
    assert trials()[1].user_attrs["hpo:owner"]["pid"] == second.pid
    assert span(0)[0] < span(1)[0]


# Refusals


def test_a_worker_for_a_study_without_a_storage_is_told_to_begin_with_a_sweep(workplace: Path) -> None:
    refused = run_hpo("worker", "--study", "digits", status=2)
    assert "hpo sweep" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (workplace / "runs" / "studies.db").exists()


def test_a_worker_for_a_study_that_does_not_exist_is_told_which_do(swept: Path) -> None:
    refused = run_hpo("worker", "--study", "digit", status=2)
    assert "did you mean 'digits'?" in refused.stderr and "studies.db: digits)" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("setting", ["training.epochs=1", "optimizer.lr=0.01", "data.max_samples=100"])
def test_a_worker_takes_no_setting_that_changes_what_is_computed(swept: Path, setting: str) -> None:
    refused = run_hpo("worker", "--study", "digits", "--set", setting, status=2)
    key = setting.partition("=")[0]
    assert f"--set {key}: a worker does what the study says" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(trials()) == 3


def test_a_worker_needs_no_file_of_the_study_and_starts_no_trial_above_its_budget(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_hpo("worker", "--study", "digits", "--storage", f"sqlite:///{swept}/runs/studies.db")
    assert "the study has 3 trials (3 asked for)" in done.stderr
    assert done.stdout.splitlines()[1:4] == [
        "this worker  evaluated 0 trials",
        "study        digits",
        "trials       3 complete",
    ]
    assert " train-best --study digits --storage 'sqlite:///" in done.stdout.splitlines()[-1]
    monkeypatch.chdir(swept)
    assert len(trials()) == 3
    beside_its_file = run_hpo("worker", "--study", "digits")
    next_steps = beside_its_file.stdout.partition("next:\n")[2].splitlines()
    assert [step.split(maxsplit=1)[1] for step in next_steps] == ["report --study digits", "train-best --study digits"]
