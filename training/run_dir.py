"""The run directory: the only meeting point of the job's ranks and whoever launched them. Torch-free.

    config.yaml     the resolved, complete configuration (training/config/sealed.py)
    metrics.jsonl   one Record a line, appended by rank 0
    stop            present when the job is asked to stop early; says so when its checkpoints are to stay
    next            where its processes go on when they are done: another run directory, or empty for nowhere
    result.json     the Outcome, written by rank 0 before any teardown
    predictions/    what the last evaluation found for each sample, there before result.json (training/predictions.py)
    findings.jsonl  one Finding a line: what was changed or has no effect
    error.json      the Failure of the first rank that failed
    checkpoints/    epoch_0003-5d41402a.pt, or the folder epoch_0003-5d41402a with a shard of every rank; the newest two
                    while the job runs, then the newest, if any is kept (names: training/checksums.py)
    model/          the trained model, when asked for
    logs/           agent.log, rank_0.log, ...

Every whole file appears atomically (a temporary file in the same folder, fsync, rename), so a reader finds all of it
or none, and a kill at any moment leaves the directory usable. What scores come from, the configuration, the outcome and
each record, has a checksum with it, so a damaged disk changes none unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from itertools import dropwhile
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, TypeVar, get_args, get_origin, get_type_hints

from training.atomic_files import remove, sync_folder, temporary, write_atomically, write_once
from training.checksums import Position, checksum, is_whole, position_of
from training.config import JobConfig, dump_sealed, job_config, read_sealed
from training.errors import DataError, Failure, FailureKind
from training.full_disk import naming

Value = TypeVar("Value")

ENSEMBLE = "ensemble.json"
"""In a folder of run directories: which of their models are to be averaged."""
ROUNDING = 1e-3
"""How far metrics may be from those of the same job where it is computed in another order."""
KEEP = b"keep the checkpoints\n"
"""What `stop` says to a job that another one will go on with."""
PREEMPTED = b"preempted: keep the checkpoints\n"
"""The same, said by a rank that was itself told to leave."""
CHECKSUM = "crc32"
"""The key that says so in what has one; what has none is taken as it is."""


class Event(StrEnum):
    """What a Record tells."""

    START = "start"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of ``metrics.jsonl``. `step` counts optimizer steps and `epoch` finished epochs, from the start."""

    event: Event
    step: int
    epoch: int
    time: float
    """Unix time in seconds."""
    values: dict[str, float]
    """START: world_size, epochs, steps_per_epoch, train_samples. TRAIN: loss, lr. EVALUATE: the task's metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a job that ended by itself leaves in ``result.json``."""

    metrics: dict[str, float]
    """The metrics of the last evaluation."""
    stopped: bool
    """True when the job left early because it was asked to."""
    epochs: int
    steps: int
    train_samples: int
    eval_samples: int
    split_id: str
    """Identity of the samples, classes and folds; another job with it is scored on the same ones."""
    world_size: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    tolerance: float = 0.0
    """How far the metrics of the same job may be from these on the same device: this much of their size, or of 1."""
    paused: bool = False
    """True when a stopped job has left its checkpoints, for another one to go on from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to tell of a job that keeps it from nothing: what was changed or has no effect, why, what to do."""

    key: str
    """The configuration key, or the file, it is about."""
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}; {self.advice}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What a plan is to be made for."""

    memory_bytes: int
    """What a job may take of each device."""
    world_size: int
    has_bfloat16: bool = True
    """Whether ``precision: auto`` is bf16-mixed there, as since Ampere; else it is 32."""
    every_way: bool = True
    """All strategies, or the configuration as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One way to run a job, and what it takes of each device at its peak. The parts add up to it."""

    strategy: str
    world_size: int
    gradient_checkpointing: bool
    cpu_offload: bool
    micro_batch_size: int
    num_micro_batches: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    fits: bool


class RunDir:
    """Every path of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.stop = self.path / "stop"
        self.next = self.path / "next"
        self.result = self.path / "result.json"
        self.error = self.path / "error.json"
        self.findings = self.path / "findings.jsonl"
        self.plan = self.path / "plan.json"
        self.checked = self.path / "checked"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions"
        self.logs = self.path / "logs"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDir:
        """A fresh directory `parent`/`name`, or `name`-2, `name`-3, ... when taken; safe between processes."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                number += 1
            else:
                return cls(path)

    def prepare(self, config: JobConfig, *, resume: bool = False, is_last: bool = True) -> None:
        """Write the configuration and clear what an earlier attempt left; `resume` keeps its checkpointed epochs.

        A checkpoint that is damaged is removed, which becomes a Finding; the one before it counts then.
        Unless it `is_last`, the job's processes wait at its end until they are told where to go on (``write_next``).
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        self.tidy()
        damaged = self._forget_damaged() if resume else []
        if resume:
            self.forget_after(self.position())
        else:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            self.metrics.unlink(missing_ok=True)
        for leftover in (self.stop, self.next, self.result, self.error, self.findings, self.plan):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self.predictions, ignore_errors=True)
        self.add_findings(damaged)
        if is_last:
            self.write_next(None)
        self.write_config(config)

    def tidy(self) -> None:
        """Remove what processes that were killed have left half written; none may be at work here."""
        for half_written in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            remove(half_written)

    def checkpoint(self, at: Position, checksum: str) -> Path:
        """The checkpoint taken there."""
        return self.checkpoints / f"{at}-{checksum}.pt"

    def sharded_checkpoint(self, at: Position, checksum: str) -> Path:
        """The same, as a folder into which every rank wrote its shard."""
        return self.checkpoints / f"{at}-{checksum}"

    @contextlib.contextmanager
    def new_checkpoint(self, at: Position) -> Iterator[BinaryIO]:
        """A file that becomes that checkpoint, atomically and durably, when the block ends without an error."""
        with temporary(self.checkpoints / str(at)) as (name, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, self.checkpoint(at, checksum(Path(name))))
        sync_folder(self.checkpoints)

    def saved_checkpoints(self) -> list[Path]:
        """Files and folders, the newest first."""
        found = [(at, path) for path in self.checkpoints.glob("epoch_*") if (at := position_of(path)) is not None]
        return [path for _, path in sorted(found, reverse=True)]

    def position(self) -> Position:
        """Where the newest checkpoint was taken; Position(0), the start, when there is none."""
        return max((at for path in self.saved_checkpoints() if (at := position_of(path))), default=Position(0))

    def last_epoch(self) -> int:
        """Finished epochs at the newest checkpoint; 0 when there is none."""
        return self.position().epoch

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from; it may have been taken within the first epoch."""
        return self.position() > Position(0)

    def keep_newest_checkpoint(self) -> None:
        """Remove the others."""
        for path in self.saved_checkpoints()[1:]:
            remove(path)

    def _forget_damaged(self) -> list[Finding]:
        """Remove the checkpoints that are newer than the newest one that is whole."""
        whole = [*dropwhile(lambda path: not is_whole(path), saved := self.saved_checkpoints())]
        for path in (damaged := saved[: len(saved) - len(whole)]):
            remove(path)
        message = "is damaged: it has not the checksum in its name"
        advice = f"the training goes on from {self.position()}" if whole else "the training starts anew"
        return [Finding(key=str(path), message=message, advice=advice) for path in damaged]

    def write_config(self, config: JobConfig) -> None:
        """Write ``config.yaml``."""
        write_atomically(self.config, dump_sealed(config.model_dump()))

    def load_config(self) -> JobConfig:
        """Read ``config.yaml``. Raises ConfigError, also where it is not what was written."""
        return job_config(read_sealed(self.config))

    def log(self, name: str) -> Path:
        """The log file of ``agent`` or ``rank_0``."""
        return self.logs / f"{name}.log"

    def request_stop(self, *, keeps_checkpoint: bool = False) -> None:
        """Ask the job to leave at the next point where rank 0 looks; another may go on from a checkpoint it keeps."""
        if keeps_checkpoint:
            write_atomically(self.stop, KEEP)
        else:
            self.stop.touch()

    def keeps_checkpoint(self) -> bool:
        """Whether a job that was asked to stop is to leave its checkpoints."""
        return self._stop_says() in (KEEP, PREEMPTED)

    def preempt(self) -> None:
        """Ask the job to stop, with its checkpoints, because this rank was told to leave."""
        write_atomically(self.stop, PREEMPTED)

    def is_preempted(self) -> bool:
        """Whether a rank was told to leave."""
        return self._stop_says() == PREEMPTED

    def _stop_says(self) -> bytes | None:
        return self.stop.read_bytes() if self.stop.exists() else None

    def write_next(self, following: RunDir | None) -> bool:
        """Say where the job's processes go on, unless it was said before. Returns whether this call said it."""
        return write_once(self.next, os.fsencode(following.path) if following else b"")

    def load_next(self) -> RunDir | None:
        """Where they go on, once it was said; None for nowhere."""
        path = os.fsdecode(self.next.read_bytes())
        return RunDir(Path(path)) if path else None

    def append(self, record: Record) -> None:
        """Append one line (rank 0)."""
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Append what there is to tell (whoever launches the job, then rank 0), less what is there already."""
        known = self.load_findings()
        if lines := [json.dumps(asdict(finding)) + "\n" for finding in findings if finding not in known]:
            with naming(self.findings), self.findings.open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def load_findings(self) -> list[Finding]:
        """What there is to tell of the job. Raises DataError when it is damaged."""
        data = self.findings.read_bytes() if self.findings.exists() else b""
        return _decode(self.findings, lambda: [_built(Finding, json.loads(line)) for line in data.splitlines()])

    def load_plan(self) -> list[PlanRow] | None:
        """The plan of this job, or None when there is none. Raises DataError when it is damaged."""
        if not self.plan.exists():
            return None
        return _decode(self.plan, lambda: [_built(PlanRow, row) for row in json.loads(self.plan.read_bytes())])

    def forget_after(self, at: Position) -> None:
        """Drop the records that a job resuming `at` will repeat, and a cut-off line."""
        kept = [record for record in self.records() if _is_before(record, at)]
        lines = "".join(map(_line, kept)).encode()
        if self.metrics.exists() and self.metrics.stat().st_size != len(lines):
            write_atomically(self.metrics, lines)

    def records(self) -> list[Record]:
        """All complete lines so far."""
        return Tail(self).read()

    def write_result(self, outcome: Outcome) -> None:
        """Write ``result.json`` (rank 0)."""
        write_atomically(self.result, json.dumps(_sealed(asdict(outcome)), indent=2).encode())

    def load_result(self) -> Outcome | None:
        """The outcome, or None when the job has not ended by itself. Raises DataError when it is damaged."""
        values = _read_json(self.result)
        return None if values is None else _decode(self.result, lambda: _built(Outcome, _unsealed(values)))

    def write_error(self, failure: Failure) -> bool:
        """Write ``error.json`` unless another rank was first. Returns whether this one was."""
        return write_once(self.error, json.dumps(asdict(failure), indent=2).encode())

    def load_error(self) -> Failure | None:
        """The failure of the first rank that failed, or None. Raises DataError when it is damaged."""
        values = _read_json(self.error)
        if values is None:
            return None
        return _decode(self.error, lambda: _built(Failure, {**values, "kind": FailureKind(values["kind"])}))


def _is_before(record: Record, at: Position) -> bool:
    if record.epoch != at.epoch:
        return record.epoch < at.epoch
    return record.event is Event.EVALUATE or (record.event is Event.TRAIN and record.step <= at.step)


class Tail:
    """Reads the records of a run as they come, each once, never a half-written line and never the file again."""

    def __init__(self, run_dir: RunDir, *, offset: int = 0) -> None:
        self._path = run_dir.metrics
        self._offset = offset

    def read(self) -> list[Record]:
        """The records completed since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [self._decode(line) for line in complete.splitlines()]

    def _decode(self, line: bytes) -> Record:
        try:
            values = _unsealed(json.loads(line))
            return _built(Record, {**values, "event": Event(values["event"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{self._path}: a line is damaged: {line[:80]!r}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged: not a JSON object")
    return values


def _decode(path: Path, build: Callable[[], Value]) -> Value:
    try:
        return build()
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r}") from error


def _line(record: Record) -> str:
    return json.dumps(_sealed(asdict(record))) + "\n"


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` and their checksum."""
    return {**values, CHECKSUM: _checksum(values)}


def _unsealed(values: Any) -> dict[str, Any]:
    """`values` without their checksum. Raises ValueError when it is not theirs."""
    rest = dict(values)
    checksum = rest.pop(CHECKSUM, None)
    if checksum not in (None, _checksum(rest)):
        raise ValueError("its checksum is not that of its values")
    return rest


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


_type_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _built(kind: type[Value], values: dict[str, Any]) -> Value:
    """A `kind`, which is a dataclass, with these fields. Raises TypeError where one is missing or of another type."""
    made = kind(**values)
    for name, hint in _type_hints(kind).items():
        if not _is_a(getattr(made, name), hint):
            raise TypeError(f"{name} cannot be {getattr(made, name)!r:.80}")
    return made


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_a(value, each) for each in get_args(hint))
    if get_origin(hint) is dict:
        of = get_args(hint)[1]
        return isinstance(value, dict) and all(_is_a(each, of) for each in value.values())
    if hint is float:
        return isinstance(value, (int, float))
    return type(value) is int if hint is int else isinstance(value, hint)
