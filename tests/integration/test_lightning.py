"""Under PyTorch Lightning's Trainer a job stops, resumes, dies and computes as it does under the native loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import ranks_under
from tests.integration.test_strategies import CHECKOUT, DDP, TWO_RANKS, job, train, write_texts
from training.config import JobConfig
from training.job_processes import JOB_ID
from training.run_dir import Event, Outcome, Record, RunDir

OTHER = {"native": "lightning", "lightning": "native"}
DIGITS = {
    "data": {"name": "digits", "max_samples": 120},
    "model": {"architecture": "mlp", "hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.5},
    "output.keep_checkpoint": True,
}
SIGTERM_LIMIT_S = 15.0

STOPPING_TASKS = """\
import itertools
from pathlib import Path
from training.tasks.image_classification import ImageClassification

class InAnEpoch(ImageClassification):
    def build_model(self, config, data):
        model, forwards = super().build_model(config, data), itertools.count(1)

        def ask(module, inputs):
            if module.training and next(forwards) == 6:
                (Path(config.output.root) / "stop").touch()

        model.register_forward_pre_hook(ask)
        return model

class AtItsEnd(ImageClassification):
    def build_model(self, config, data):
        model = super().build_model(config, data)
        summarize = model.summarize

        def ask_and_summarize(totals):
            (Path(config.output.root) / "stop").touch()
            return summarize(totals)

        model.summarize = ask_and_summarize
        return model
"""


@dataclass(frozen=True)
class Ended:
    records: list[Record]
    """Without the time."""
    outcome: Outcome


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """Jobs of two ranks under both engines, and those that went on under the other one: ``native_then_lightning``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("engines"))
        write_texts(Path("texts.csv"))
        Path("stopping.py").write_text(STOPPING_TASKS)
        jobs = {f"{engine}_{name}": config for engine in OTHER for name, config in variants(engine).items()}
        train(jobs)
        found = {name: read(RunDir(Path(name))) for name in jobs}
        going_on = {f"{first}_at_its_end": variants(then)["whole"] for first, then in OTHER.items()}
        train(going_on, resume=True)
        yield found | {name.replace("at_its_end", "resumed"): read(RunDir(Path(name))) for name in going_on}


def variants(engine: str) -> dict[str, JobConfig]:
    changes = {**DDP, "training.engine": engine}
    digits = job("image_classification", **changes, **DIGITS, **{"training.epochs": 3})
    return {
        "whole": digits,
        "in_an_epoch": digits.with_values({"task": "stopping:InAnEpoch", "output.root": f"{engine}_in_an_epoch"}),
        "at_its_end": digits.with_values({"task": "stopping:AtItsEnd", "output.root": f"{engine}_at_its_end"}),
        "cache": job("embedding", **changes, **{"gradient_cache.chunk_size": 2}),
        "lora": job("text_classification", **changes, **{"lora": {"r": 2}}),
        "scaled": job("text_classification", **changes, **{"training.precision": "16-mixed"}),
    }


def read(run_dir: RunDir) -> Ended:
    outcome = run_dir.load_result()
    assert outcome is not None
    return Ended([replace(record, time=0.0) for record in run_dir.records()], outcome)


@pytest.mark.parametrize("engine", OTHER)
def test_a_stop_within_an_epoch_is_heard_after_that_step(ended: dict[str, Ended], engine: str) -> None:
    stopped, whole = ended[f"{engine}_in_an_epoch"], ended["native_whole"]
    assert (stopped.outcome.stopped, stopped.outcome.epochs, stopped.outcome.steps) == (True, 1, 6)
    assert stopped.records == whole.records[: 1 + 4 + 1 + 2]  # start, an epoch, its evaluation, two steps
    assert stopped.outcome.metrics == stopped.records[5].values


@pytest.mark.parametrize("engine", OTHER)
def test_a_stop_at_the_end_of_an_epoch_is_heard_there(ended: dict[str, Ended], engine: str) -> None:
    stopped, whole = ended[f"{engine}_at_its_end"], ended["native_whole"]
    assert (stopped.outcome.stopped, stopped.outcome.epochs, stopped.outcome.steps) == (True, 1, 4)
    assert stopped.records == whole.records[: 1 + 4 + 1]


@pytest.mark.parametrize("engine", OTHER)
def test_a_checkpoint_of_one_engine_goes_on_under_the_other(ended: dict[str, Ended], engine: str) -> None:
    resumed, whole = ended[f"{engine}_resumed"], ended["native_whole"]
    assert [record.epoch for record in resumed.records if record.event is Event.START] == [0, 1]
    assert without_start(resumed) == without_start(whole)
    assert not resumed.outcome.stopped


def without_start(job: Ended) -> list[Record]:
    return [record for record in job.records if record.event is not Event.START]


@pytest.mark.parametrize("name", ["whole", "cache", "lora", "scaled"])
def test_gradient_cache_adapters_and_a_scaled_loss_are_the_native_ones(ended: dict[str, Ended], name: str) -> None:
    assert variants("native")["cache"].batch_plan(2).num_micro_batches == 4
    assert len(ended[f"native_{name}"].records) >= 1 + 4 + 1
    assert ended[f"lightning_{name}"].records == ended[f"native_{name}"].records


def test_sigterm_of_one_rank_has_them_all_leave_with_a_checkpoint(tmp_path: Path) -> None:
    config = job("image_classification", **DDP, **DIGITS, **{"training.engine": "lightning", "training.epochs": 10**6})
    run_dir = RunDir(tmp_path / "endless")
    run_dir.prepare(config.with_values({"output.root": str(tmp_path)}))
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", JOB_ID: "sigterm"}
    command = [sys.executable, *TWO_RANKS, "-m", "training.main", str(run_dir.path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        try:
            wait_for_training(run_dir)
            rank(tmp_path, 1).send_signal(signal.SIGTERM)
            assert launcher.wait(timeout=SIGTERM_LIMIT_S) == 0
        finally:
            launcher.kill()
    assert not ranks_under(tmp_path)
    outcome = run_dir.load_result()
    assert outcome is not None and outcome.paused and run_dir.last_epoch() > 0


def wait_for_training(run_dir: RunDir) -> None:
    deadline = time.monotonic() + 60
    while not any(record.event is Event.EVALUATE for record in run_dir.records()):
        assert time.monotonic() < deadline, run_dir.load_error()
        time.sleep(0.05)


def rank(folder: Path, number: int) -> psutil.Process:
    [found] = [process for process in ranks_under(folder) if process.environ().get("RANK") == str(number)]
    return found
