"""Starts jobs from a warm process, without their imports: ``python -m training.fork_server SOCKET PADDING``.

The server imports what jobs need, computes a little on the CPU, once, and nothing else happens in it: no GPU is touched
and no thread is started, so that its forks are as good as fresh processes. Each Request is handed to an agent that was
forked before, and that belongs to the process that asked (the server is not its parent, and may end). The agent of one
rank is that rank; of several it is torchelastic's.

One JSON object a line over the socket: a Request in; ``{"pid": 7}``, ``{"stale": why}`` (start another server) or
``{"unsafe": why}`` (do without one) out. A message with a `config` only announces a job: its imports are done, and
nothing is answered. The server ends when the other end of its socket is closed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from training.check import check
from training.config import JobConfig
from training.errors import RANK_KILLED
from training.job_processes import JOB_ID
from training.main import run_rank_here
from training.process import (
    die_with_parent,
    ignore_user_signals,
    leave,
    no_garbage_collection,
    redirect_output,
    rename,
)
from training.run_dir import RunDir
from training.torchrun import killed_ranks_told
from training.versions import version_of

ALWAYS = (
    "torch",
    "torch._dynamo",  # by the first optimizer, and by DDP
    "torch.distributed.launcher.api",
    "training.distributed",
    "training.job",
    "training.package_sources",
    "training.rendezvous",
)
VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "pandas", "scipy", "sqlalchemy")
MONITOR_INTERVAL_S = 0.02
"""Between two looks of an agent at its ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One job to start."""

    run_dirs: list[str]
    """That of the job, or those of jobs that are to be built only (training/check.py)."""
    is_check: bool = False
    config: str
    """The job's configuration as JSON: what to import for it."""
    num_ranks: int
    environment: dict[str, str]
    """All of it."""
    folder: str
    """Working directory."""
    cores: list[int]
    """CPU cores to run on; empty for all."""


def main() -> None:
    """Serve until the other end hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    with control, control.makefile("rw", encoding="utf-8") as lines:
        server = Server()
        server.fork_spare()
        for line in lines:
            asked = json.loads(line)
            server.prepare(JobConfig.model_validate_json(asked["config"]))
            if len(asked) > 1:  # and not only a warning of what will come
                lines.write(json.dumps(server.answer(Request(**asked))) + "\n")
                lines.flush()
            server.fork_spare()


class Server:
    """What was imported, and from which state of the files."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._spare: Spare | None = None
        self._prepare(ALWAYS)
        _warm_up()

    def answer(self, request: Request) -> dict[str, int | str]:
        """Start the job, or say why not."""
        if changed := self._changed():
            return {"stale": f"{changed} changed"}
        if unsafe := _unsafe():
            return {"unsafe": unsafe}
        spare, self._spare = self._spare or Spare(), None
        if not spare.pid:
            spare.dismiss()
            return {"unsafe": "an import looked for GPUs by CUDA, which does not work in a fork then"}
        return {"pid": spare.hire(request)}

    def prepare(self, config: JobConfig) -> None:
        """Import what jobs like `config` need."""
        self._prepare(modules_of(config))

    def fork_spare(self) -> None:
        """Fork the next agent, while nobody waits for it."""
        if not _unsafe():
            self._spare = self._spare or Spare()

    def _prepare(self, names: tuple[str, ...]) -> None:
        if all(name in sys.modules for name in names):
            return
        self._dismiss_spare()  # it lacks what comes now
        with no_garbage_collection():
            for name in names:
                with contextlib.suppress(Exception):  # a job that needs it will say what is wrong
                    importlib.import_module(name)
        self._files.update((path, _stamp(path)) for path in _sources() if path not in self._files)

    def _dismiss_spare(self) -> None:
        if self._spare:
            self._spare.dismiss()
            self._spare = None

    def _changed(self) -> str | None:
        return next((path for path, stamp in self._files.items() if _stamp(path) != stamp), None)


def modules_of(config: JobConfig) -> tuple[str, ...]:
    """What the ranks of `config` import, but for a task of the user's own, whose code runs in ranks only."""
    names = []
    if ":" not in config.task:
        names.append(f"training.tasks.{config.task}")
    if config.training.engine == "lightning":
        names.append("training.lightning_engine")
    if config.distributed.strategy == "fsdp":
        names.append("training.fsdp")
    if config.lora is not None:
        names.append("training.lora")
    architecture, transformers = config.model.architecture.replace("-", "_"), find_spec("transformers")
    if transformers and any(
        Path(path, "models", architecture).is_dir() for path in transformers.submodule_search_locations or ()
    ):
        names.append(f"transformers.models.{architecture}.modeling_{architecture}")
    return tuple(names)


def _sources() -> Iterator[str]:
    """The files of loaded modules, and for those that pip installed the folder that it changes."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    for path in {file for file in files if file}:
        installed = next((part for part in Path(path).parents if part.name in ("site-packages", "dist-packages")), None)
        yield str(installed or path)


def _stamp(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _warm_up() -> None:
    """Do once what each job would do first: look up versions, and set up the kernels of common layers on the CPU."""
    import torch

    for package in VERSIONS:
        version_of(package)
    layers = (torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8))
    with torch.no_grad():
        torch.nn.Sequential(*layers)(torch.zeros(8, 8)).softmax(dim=1)


def _unsafe() -> str:
    """Why a fork of this process would not be as good as a fresh one."""
    import torch

    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"an import started threads ({threads} run)"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "an import opened the GPU"
    return ""


class Spare:
    """An agent in waiting. It is an orphan already, so its parent is the process that asks, which adopts them."""

    def __init__(self) -> None:
        reading, self._request = os.pipe()
        told, telling = os.pipe()
        between = os.fork()
        if between == 0:
            parent = os.getpid()
            if os.fork() == 0:
                for descriptor in (int(sys.argv[1]), self._request, told):
                    os.close(descriptor)
                _wait_for_request(reading, telling, parent)
            os._exit(0)
        os.waitpid(between, 0)
        os.close(reading)
        os.close(telling)
        with open(told, "rb") as pipe:
            self.pid = int.from_bytes(pipe.read(), "little")  # 0: it could not use a GPU

    def hire(self, request: Request) -> int:
        """Have it run `request`; its process id."""
        with open(self._request, "wb") as pipe:
            pipe.write(json.dumps(asdict(request)).encode())
        return self.pid

    def dismiss(self) -> None:
        """End it, as the end of this server would."""
        os.close(self._request)


def _wait_for_request(reading: int, telling: int, parent: int) -> NoReturn:
    """Of a spare: no request is what it gets when it is not needed any more."""
    while os.getppid() == parent:
        time.sleep(0.0001)
    import torch

    if not torch.cuda._is_in_bad_fork():
        os.write(telling, os.getpid().to_bytes(8, "little"))
    os.close(telling)
    with open(reading, "rb") as pipe:
        line = pipe.read()
    if line:
        _agent(Request(**json.loads(line)))
    os._exit(0)


def _agent(request: Request) -> NoReturn:
    """Everything a fresh process would be, then the job."""
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(request.environment)
        die_with_parent()
        os.chdir(request.folder)
        if not sys.flags.safe_path:
            sys.path[0] = request.folder
        importlib.invalidate_caches()
        run_dirs = [RunDir(Path(path)) for path in request.run_dirs]
        run_dir, module = run_dirs[0], "training.check" if request.is_check else "training.main"
        rename(f"{sys.executable} -m {module} {run_dir.path}", job_id=request.environment[JOB_ID])
        redirect_output(run_dir.log("agent"))
        if request.cores:
            os.sched_setaffinity(0, request.cores)
        if request.is_check:
            check(run_dirs)
        elif request.num_ranks == 1:
            run_rank_here(run_dir)
        else:
            _run_ranks(run_dir, request.num_ranks)
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


def _run_ranks(run_dir: RunDir, num_ranks: int) -> None:
    """As ``torchrun --standalone``, with ranks that are forks of this agent."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from training.rendezvous import LOCAL

    with _gpus_untouched():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=run_dir.path.name,
            rdzv_backend=LOCAL,
            max_restarts=0,
            monitor_interval=MONITOR_INTERVAL_S,
            start_method="fork",
            logs_specs=DefaultLogsSpecs(log_dir=str(run_dir.logs / "torchrun")),
        )
    _leave_without_a_rank()
    ignore_user_signals()
    with killed_ranks_told():
        elastic_launch(config, _rank)(str(run_dir.path))


def _leave_without_a_rank() -> None:
    """Have this agent end when a rank ended of which torchelastic hears nothing.

    It awaits a word of those that left by ``os._exit(0)``. And one that was killed is alive to it as long as processes
    are that this rank forked, since they hold the other end of the pipe by which it would know.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    goes_on: list[bool] = []  # at each look since the first rank was started

    def begin() -> None:
        goes_on[:] = goes_on or [True]

    def look(*_: object) -> None:
        if goes_on:
            statuses = [_exit_status(int(pid)) for pid in children.read_text().split()]
            goes_on.append(None in statuses and not any(statuses))
            if not any(goes_on[-2:]):
                leave(RANK_KILLED if -signal.SIGKILL in statuses else int(not statuses or any(statuses)))

    if children.exists():
        os.register_at_fork(after_in_parent=begin)
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)  # which ranks do not inherit


def _exit_status(pid: int) -> int | None:
    """Of a child that is left to be waited for; negative for a signal, None while it runs."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


@contextlib.contextmanager
def _gpus_untouched() -> Iterator[None]:
    """torchelastic counts the GPUs, by CUDA, after which no fork of this process could use them; NVML is as good."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _rank(path: str) -> None:
    """A rank, from here on like one that torchrun started."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # it inherited the agent's
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_dir = RunDir(Path(path))
    rename(f"{sys.executable} -m training.main {run_dir.path} rank {os.environ['RANK']}")
    die_with_parent()
    run_rank_here(run_dir)


if __name__ == "__main__":
    main()
