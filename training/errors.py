"""Everything this package raises on purpose, and the failure a rank leaves behind.

    TrainingError                 kind of the Failure it becomes
    ├── ConfigError               config       the YAML, or what it asks for, is wrong: a list of Problems
    ├── DataError                 data         the dataset cannot be read or does not fit the task
    ├── NonFiniteLossError        non_finite   the loss became NaN or infinite
    └── DistributedStartError     distributed_start   the process group could not be formed

Any other exception in a rank is ``user_code``, but for out-of-memory (``oom``), a disk that is full or broken
(``disk_full``), no room for a DataLoader's workers (``shm_full``), a collective that broke after the start
(``infrastructure``), and a loader's process that was killed (``signal``). The others are only ever seen from outside,
by whoever launched the job: ``signal`` (a rank was killed), ``preemption`` (it was told to leave), ``hang`` and
``timeout`` (it was given up), and ``launch`` (it ended and said nothing). What is done about each is hpo/policy.py's.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from training.full_disk import is_disk_error, is_shared_memory_error

RANK_KILLED = 128 + signal.SIGKILL
"""Exit status of an agent one of whose ranks was killed; what the other ranks say then is only of its loss."""
MAX_MESSAGE = 4000
"""Characters of what is said of one mistake."""


class FailureKind(StrEnum):
    """Why a job failed; the word recorded in the study, in MLflow and in ``error.json``."""

    CONFIG = "config"
    DATA = "data"
    NON_FINITE = "non_finite"
    OOM = "oom"
    USER_CODE = "user_code"
    DISTRIBUTED_START = "distributed_start"
    INFRASTRUCTURE = "infrastructure"
    SIGNAL = "signal"
    LAUNCH = "launch"
    HANG = "hang"
    TIMEOUT = "timeout"
    PREEMPTION = "preemption"
    DISK_FULL = "disk_full"
    SHM_FULL = "shm_full"


class TrainingError(Exception):
    """Base of every error this package raises on purpose."""

    kind = FailureKind.USER_CODE


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing wrong with the user's input: where it stands and which rule it breaks.

    The message may quote any value: it becomes one line of visible characters, not longer than a screen.
    """

    place: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _visible(self.message))

    def __str__(self) -> str:
        is_named = self.message.startswith(self.place)
        return self.message if is_named else f"{self.place}: {self.message}"


def _visible(text: str) -> str:
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 4 :]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class ConfigError(TrainingError):
    """What the user wrote is wrong. Carries every problem found, not only the first."""

    kind = FailureKind.CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(TrainingError):
    """The dataset cannot be read, or is not what the task needs."""

    kind = FailureKind.DATA


class NonFiniteLossError(TrainingError):
    """The training loss became NaN or infinite."""

    kind = FailureKind.NON_FINITE


class DistributedStartError(TrainingError):
    """The ranks could not form a process group."""

    kind = FailureKind.DISTRIBUTED_START


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The first failure of a job, as kept in ``error.json``. ``rank`` is None when no rank could say it itself."""

    kind: FailureKind
    message: str
    rank: int | None = None
    traceback: str = ""


def classify(error: BaseException) -> FailureKind:
    """Name the kind of an exception caught in a rank (no torch import needed: classes are matched by name)."""
    if is_shared_memory_error(error):
        return FailureKind.SHM_FULL
    if is_disk_error(error):
        return FailureKind.DISK_FULL
    if isinstance(error, TrainingError):
        return error.kind
    if type(error).__name__ in {"DistBackendError", "DistNetworkError", "DistStoreError"} or _is_lost_peer(error):
        return FailureKind.INFRASTRUCTURE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _says_no_memory(error):
        return FailureKind.OOM
    if isinstance(error, RuntimeError) and re.match(r"DataLoader worker .* is killed by signal", str(error)):
        return FailureKind.SIGNAL
    cause = FailureKind.USER_CODE if error.__cause__ is None else classify(error.__cause__)
    return cause if cause in (FailureKind.OOM, FailureKind.SIGNAL) else FailureKind.USER_CODE


def _says_no_memory(error: BaseException) -> bool:
    # The CPU's allocator, CUDA outside of torch's allocator, and cuBLAS raise a bare RuntimeError.
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("can't allocate", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _is_lost_peer(error: BaseException) -> bool:
    # gloo raises a bare RuntimeError when a peer goes away.
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text and ("Connection" in text or "closed by peer" in text))
