"""A rank as a process: its output, its death with its parent, and what it leaves when it fails."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from training.errors import Failure, FailureKind, TrainingError, classify
from training.full_disk import explain, explain_shared_memory
from training.job_processes import JOB_ID, PARENT_PID
from training.run_dir import RunDir

_PR_SET_PDEATHSIG = 1
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""By which schedulers tell a process that it will be killed soon. Our own side ends ranks by SIGHUP, then SIGKILL."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere nothing happens).

    ``HPO_PARENT_PID`` says who it was; a process started by this one gets this one's.
    """
    die_with(int(os.environ.get(PARENT_PID) or os.getppid()))
    os.environ[PARENT_PID] = str(os.getpid())


def die_with(parent: int) -> None:
    """The same, for a child of the process `parent`.

    To the kernel the parent is the thread that started this process, so it must be one that lives as long as the job.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def rename(command: str, *, job_id: str | None = None) -> None:
    """Show another command line, and another job id in the environment, to whoever looks at this process.

    What ps and nvidia-smi show of a process was written when it was executed; a forked one shows its parent's. There
    must be room: an argument and a job id of PADDING (hpo/launchers/fork_server.py), the last of all.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arguments, arguments_end, environment, environment_end = (int(field) for field in fields[45:49])
    # A last byte that is not zero tells the kernel that the command line ends at the first zero.
    room = arguments_end - arguments
    ctypes.memmove(arguments, os.fsencode(command)[: room - 2].ljust(room - 1, b"\0") + b".", room)
    if job_id is not None:
        prefix = f"{JOB_ID}=".encode()
        start = ctypes.string_at(environment, environment_end - environment).index(prefix) + environment
        room = environment_end - start
        ctypes.memmove(start, (prefix + os.fsencode(job_id))[: room - 1].ljust(room, b"\0"), room)


def leave_on_notice(run_dir: RunDir) -> None:
    """From now on a notice to this rank asks the whole job in `run_dir` to stop and to leave its checkpoints.

    Where another rank has failed, it is the agent that ends the others so, and they end.
    """
    rank = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() == rank and not (run_dir.error.exists() or _lacks_a_peer()):
            with contextlib.suppress(OSError):  # a full disk, or another process has the run directory now
                run_dir.preempt()
        else:  # or a process that the user's code forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in NOTICES:
        signal.signal(number, hear)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup


def _lacks_a_peer() -> bool:
    """Whether a rank of this machine has ended."""
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_ranks == 1:
        return False
    import psutil

    with contextlib.suppress(psutil.Error):
        ranks = psutil.Process(os.getppid()).children()
        return sum(each.status() != psutil.STATUS_ZOMBIE for each in ranks) < num_ranks
    return True


def ignore_user_signals() -> None:
    """For an agent, whose ranks hear them: torchelastic would die of one, and its ranks with it."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def die_on_notice() -> None:
    """From now on a notice ends this process at once."""
    for number in NOTICES:
        signal.signal(number, signal.SIG_DFL)


def rank_from_environment() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def redirect_output(path: Path) -> None:
    """Append everything this process and its libraries print to `path`."""
    path.parent.mkdir(exist_ok=True)  # no parents: a run directory that another attempt has taken stays away
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For imports and whatever else is made to stay: what is alive at the end is never searched for garbage.

    Searching the million objects of torch and transformers, over and over while they are imported and once more when
    the process ends, is a third of what a cold rank costs (docs/log.md).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def forget_training() -> None:
    """Give back the memory of a training that is over, and forget what was compiled for it."""
    import torch

    gc.collect()  # a model wrapped for several ranks is part of a cycle
    torch.compiler.reset()  # or what was compiled counts towards the limit of recompilations
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def fail(run_dir: RunDir, error: BaseException, *, rank: int) -> NoReturn:
    """Leave the failure in ``error.json`` (the first rank wins) and end this process at once with status 1.

    At once: an orderly exit could wait for a peer in a collective, for a loader's worker or for the GPU.
    """
    with contextlib.suppress(OSError):  # its disk is full, or another attempt has taken it
        leave_error(run_dir, error, rank=rank)
    leave(1)


def leave(status: int) -> NoReturn:
    """End this process now. What an orderly exit does can wait for ever, or abort in a destructor (gloo's threads)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # logs on a full disk
            stream.flush()
    os._exit(status)


def leave_error(run_dir: RunDir, error: BaseException, *, rank: int) -> None:
    """Write the failure to ``error.json``, unless another rank was first, and its traceback to the log."""
    text, kind = "".join(traceback.format_exception(error)), classify(error)
    message = _message(error, kind, run_dir.path)
    run_dir.write_error(Failure(kind=kind, message=message, rank=rank, traceback=text))
    sys.stderr.write(text)


def _message(error: BaseException, kind: FailureKind, folder: Path) -> str:
    if kind is FailureKind.DISK_FULL:
        return explain(error, folder)
    if kind is FailureKind.SHM_FULL:
        return explain_shared_memory()
    text = str(error).strip()
    return text if isinstance(error, TrainingError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
