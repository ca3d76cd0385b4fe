"""Sweeps whose MLflow is a server that is killed and started again, or is not there until they are over."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from tests.chaos.sweeps import Setting
from tests.postgres import free_port

STARTS_WITHIN_S = 120.0
DOWN_S = 5.0
"""A server that was killed is started again after this, at most; it answers seconds later."""
VARIABLES = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class MlflowServer:
    """One server, its runs in `root`/mlflow.db."""

    def __init__(self, root: Path) -> None:
        self._root, self._port = root, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The tracking URI."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when it answers."""
        self._root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self._root}/mlflow.db"]
        command += ["--artifacts-destination", str(self._root / "mlartifacts"), "--workers", "1"]
        with (self._root / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port)],
                env={**os.environ, **VARIABLES},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow does not start; see {log.name}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def mlflow_server(root: Path) -> Iterator[MlflowServer]:
    """One that was not started yet."""
    server = MlflowServer(root)
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True, kw_only=True)
class Away:
    """What a sweep came to whose MLflow was away at times, or all the time."""

    seconds: float
    """Of the whole command."""
    trial_s: float
    """From the start of the first trial to the end of the last, for each."""
    kills: int
    num_lacking: int
    """What did not hold of its runs in MLflow when the sweep was over."""
    catch_up_s: float
    """The same command once more, with nothing to train."""
    violations: list[str]


def without_mlflow(
    setting: Setting, server: MlflowServer, *, num_kills: int, mean_s: float = 2.5, seed: int = 1, is_there: bool = True
) -> Away:
    """Sweep while `server` is killed that often, `mean_s` seconds after it answered, or is not there at all.

    Then it is there, and the same command is called once more.
    """
    setting.write()
    if is_there:
        server.start()
    began, process = time.monotonic(), setting.start()
    while not [*setting.run_dirs.glob("trial_0000/fold_*")] and process.poll() is None:
        time.sleep(0.1)
    kills = _kill_often(server, process, num_kills, mean_s, random.Random(seed))
    statuses, seconds = [process.wait()], time.monotonic() - began
    if not is_there:
        server.start()
    history = setting.history()
    lacking, trial_s = [*history.of_mlflow()], _seconds_per_trial(history.trials)
    history.close()
    began = time.monotonic()
    statuses += [setting.start().wait()]
    catch_up_s = time.monotonic() - began
    history = setting.history()
    wrong = history.violations(num_trials=setting.trials, num_folds=setting.folds)
    wrong += [] if statuses == [0, 0] else [f"exit statuses {statuses}"]
    wrong += [] if kills == num_kills else [f"only {kills} of {num_kills} faults"]
    wrong += [f"{trial.number} is {trial.state.name}" for trial in history.trials if trial.state.name != "COMPLETE"]
    history.close()
    return Away(
        seconds=seconds,
        trial_s=trial_s,
        kills=kills,
        num_lacking=len(lacking),
        catch_up_s=catch_up_s,
        violations=wrong,
    )


def _seconds_per_trial(trials: Sequence[FrozenTrial]) -> float:
    ended = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    begun = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    return (max(ended) - min(begun)) / len(ended) if ended and begun else math.nan


def _kill_often(
    server: MlflowServer, process: subprocess.Popen[bytes], num_kills: int, mean_s: float, chance: random.Random
) -> int:
    for done in range(num_kills):
        try:
            process.wait(chance.expovariate(1 / mean_s))
        except subprocess.TimeoutExpired:
            server.kill()
            time.sleep(chance.uniform(0.0, DOWN_S))
            server.start()
        else:
            return done
    return num_kills
