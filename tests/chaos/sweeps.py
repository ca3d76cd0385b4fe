"""Real sweeps on small data in a folder of their own, run until they end by themselves while a nemesis is at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.history import History, processes_of
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import Network

CHECKOUT = Path(__file__).parents[2]
NUM_FOLDS = 3
STUDY_FILE = ("--study", "chaos.yaml")
GONE_WITHIN_S = 5.0
"""After its orchestrator was killed, nothing of a job lives longer."""
STUDY = """\
study: chaos
base: {checkout}/config/train.yaml
config:
  task: image_classification
  data: {{name: digits, max_samples: {max_samples}}}
  model: {{architecture: mlp, hidden_size: 16, num_hidden_layers: 1, dropout: 0.1}}
  training: {{epochs: {epochs}, global_batch_size: 32}}
  distributed: {{strategy: {strategy}, devices: {devices}, accelerator: cpu, threads_per_rank: 1}}
objective: {{metric: accuracy, direction: maximize}}
cross_validation: {{folds: {folds}}}
search_space:
  optimizer.lr: {{float: [1e-3, 1e-1], log: true}}
  model.dropout: {{float: [0.0, 0.5]}}
sampler: {{name: random, seed: 1}}
stopping: {stopping}
recovery: {{max_retries: 1000, no_progress_timeout: {no_progress_s}s}}
budget: {{trials: {trials}}}
mlflow: {mlflow}
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A study to be swept, and where."""

    folder: Path
    trials: int
    folds: int = NUM_FOLDS
    epochs: int = 20
    max_samples: int = 300
    num_ranks: int = 2
    stopping: str = "{epochs: none, folds: none}"
    no_progress_s: float = 60.0
    storage: str | None = None
    """SQLAlchemy URL; a SQLite file in the folder when not given."""
    mlflow: str | None = None
    """Tracking URI; another SQLite file there when not given."""

    @property
    def url(self) -> str:
        return self.storage or f"sqlite:///{self.folder}/runs/studies.db"

    @property
    def run_dirs(self) -> Path:
        return self.folder / "runs" / "chaos"

    def write(self) -> None:
        """The study's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        strategy = "ddp" if self.num_ranks > 1 else "none"
        values = {
            "folds": self.folds,
            "trials": self.trials,
            "epochs": self.epochs,
            "max_samples": self.max_samples,
            "no_progress_s": self.no_progress_s,
            "stopping": self.stopping,
            "mlflow": self.mlflow or "null",
        }
        text = STUDY.format(checkout=CHECKOUT, strategy=strategy, devices=self.num_ranks, **values)
        (self.folder / "chaos.yaml").write_text(text)

    def start(self, command: str = "sweep", *, first: str = "", within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """``hpo sweep``, its words appended to a file; some code `first`, `within` another command."""
        machine = self.folder / f"leases{'-elsewhere' * bool(within)}"
        machine.mkdir(mode=0o700, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HPO_STORAGE": self.url, "OMP_NUM_THREADS": "1"}
        environment["HPO_LEASES"] = str(machine)
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                [*within, sys.executable, "-c", f"{first}\nfrom hpo.cli import main; main()", command, *STUDY_FILE],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def run(self) -> None:
        """Sweep to the end, without any fault."""
        self.write()
        if status := self.start().wait():
            raise RuntimeError(f"the sweep ended with {status}; see {self.folder}/said")

    def history(self) -> History:
        """Of the study as it is now."""
        return History(self.url, "chaos")


@dataclass(frozen=True, kw_only=True)
class Storm:
    """What a storm of faults came to."""

    hits: dict[str, int]
    seconds: float
    restarts: int
    survivors: list[str]
    """Processes that lived on after their orchestrator."""


LEASE_S = 6.0
SHORT_LEASES = f"""
import hpo.ledger, hpo.orchestrator, hpo.silence
hpo.ledger.LEASE_S = hpo.silence.LEASE_S = {LEASE_S}
hpo.orchestrator.ATTEND_S = 1.0
"""
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""As on a machine of its own: it sees no others'."""


def storm(setting: Setting, nemesis: Nemesis, *, num_faults: int, mean_s: float) -> Storm:
    """Sweep, while the nemesis hits `num_faults` times, `mean_s` seconds apart; what is killed is started again."""
    setting.write()
    began = time.monotonic()
    process, restarts, survivors = setting.start(), 0, list[str]()
    while True:
        is_struck = nemesis.hits.total() < num_faults
        try:
            status = process.wait(nemesis.wait_s(mean_s) if is_struck else None)
        except subprocess.TimeoutExpired:
            nemesis.strike(process.pid)
            continue
        if status == 0:
            break
        survivors += _survivors(setting.run_dirs)
        process, restarts = setting.start(), restarts + 1
        if restarts > num_faults + 5:
            raise RuntimeError(f"the sweep does not end well; see {setting.folder}/said")
    seconds = time.monotonic() - began
    return Storm(hits=dict(nemesis.hits), seconds=seconds, restarts=restarts, survivors=survivors)


def _survivors(folder: Path) -> list[str]:
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [f"{process.pid}: {' '.join(process.cmdline())}" for process in left]


def side_by_side(setting: Setting, *, workers: int, disturb: Callable[[int], None], num_faults: int) -> list[int]:
    """Sweep with more `workers` beside, while `disturb` is called that often with the process id of the last one.

    Returns the exit statuses.
    """
    setting.write()
    processes = [setting.start()]
    while not list((setting.run_dirs).glob("trial_0000/fold_*")) and processes[0].poll() is None:
        time.sleep(0.1)
    processes += [setting.start("worker") for _ in range(workers)]
    seen: set[int] = set()
    while not {process.pid for process in processes if process.poll() is None} <= seen:
        seen |= setting.history().holders()
        time.sleep(0.1)
    for _ in range(num_faults):
        if all(process.poll() is not None for process in processes):
            break
        disturb(processes[-1].pid)
    return [process.wait() for process in processes]


def cut_off(setting: Setting, cable: Network) -> list[str]:
    """Sweep with a worker beside that is cut off in the middle of a trial until another has taken that over.

    Returns what went wrong.
    """
    setting.write()
    sweep = setting.start(first=SHORT_LEASES)
    while not [*setting.run_dirs.glob("trial_0000/fold_*")] and sweep.poll() is None:
        time.sleep(0.1)
    worker = setting.start("worker", first=SHORT_LEASES, within=[*cable.within, *OWN_PROCESSES])
    while (lost := setting.history().held_elsewhere()) is None and worker.poll() is None:
        time.sleep(0.5)
    if lost is None:
        sweep.wait()
        return ["the worker had no trial"]
    while not [*setting.run_dirs.glob(f"trial_{lost:04d}/fold_*")] and worker.poll() is None:
        time.sleep(0.1)
    cable.cut()
    deadline = time.monotonic() + 120
    while (is_held := setting.history().held_elsewhere() == lost) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5.0)
    cable.join()
    statuses = [sweep.wait(), worker.wait()]
    wrong = ["the trial was not taken over"] if is_held else []
    return wrong + ([] if statuses == [0, 0] else [f"exit statuses {statuses}"])
