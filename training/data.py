"""Prepared samples on disk, their folds, and the loaders of a rank.

Samples are prepared (tokenised, converted) once per dataset and recipe, and per source where a task is the user's own,
as ``.npy`` arrays in the cache, and mapped into memory read-only by every fold, trial and rank. Folds are computed once
per cross-validation block and kept beside them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from training.atomic_files import write_atomically
from training.config import CrossValidationConfig, JobConfig
from training.distributed import RunContext
from training.errors import DataError
from training.full_disk import naming
from training.process import die_with

Batch = dict[str, Tensor]
Collate = Callable[[Batch], Batch]
TEST = -1
"""Fold number of the samples held out before the folds were made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Samples ready for a model. ``arrays[name][i]`` belongs to sample i; `info` is what the task needs to know."""

    arrays: dict[str, np.ndarray]
    """Inputs of the model, and ``labels`` where samples have a class, each with the samples along its first axis."""
    groups: np.ndarray | None = None
    """Group number of each sample, or None."""
    info: dict[str, Any] = field(default_factory=dict)
    """Plain values, such as the names of the classes."""
    folder: Path | None = None
    """Where the arrays are kept (None: nowhere); a task may keep more beside them, such as a tokenizer."""

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


def prepare_once(config: JobConfig, recipe: dict[str, Any], build: Callable[[Path], PreparedData]) -> PreparedData:
    """What `build` makes, from the cache when the same `recipe` (plain values) was built before, by the same code.

    The code is the modules of `build` and of the class that it is a method of; this package's goes by the recipe alone.
    `build` gets a folder to leave more files in. Safe for many processes at once: one builds, the others wait.
    """
    if code := _own_code(build):
        recipe = {"recipe": recipe, "code": code}
    cache = Path(config.output.root) / "cache"
    folder = cache / f"data-{_digest(recipe)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with naming(folder):
                    _build(folder, recipe, build)
    return _load(folder)


def _own_code(build: Callable[..., PreparedData]) -> dict[str, str]:
    """Where `build` is a user's own: the function, or the classes it is a method of, by name, with their sources."""
    while isinstance(build, functools.partial):
        build = build.func
    if not _is_own(build):
        return {}
    owner: Any = getattr(build, "__self__", build)
    classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    parts: Sequence[Any] = [build] if inspect.isfunction(build) else [each for each in classes if _is_own(each)]
    return {f"{part.__module__}:{part.__qualname__}": _source(part.__module__) for part in parts}


def _is_own(part: Any) -> bool:
    return str(part.__module__).partition(".")[0] not in ("training", "typing", "builtins")


@functools.cache
def _source(module: str) -> str:
    """A digest of the source that `module` was imported from, not of what becomes of it; empty if it has none."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()[:16]
    except (OSError, TypeError, KeyError):  # typed in, or compiled
        return ""


def _build(folder: Path, recipe: dict[str, Any], build: Callable[[Path], PreparedData]) -> None:
    prefix = f".building-{folder.name}-"
    for killed in folder.parent.glob(f"{prefix}*"):  # the caller holds the lock, so nobody is building it
        shutil.rmtree(killed, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        data = build(temporary)
        for name, array in data.arrays.items():
            np.save(temporary / f"{name}.npy", array)
        if data.groups is not None:
            np.save(temporary / "groups.npy", data.groups)
        meta = {"arrays": list(data.arrays), "info": data.info, "recipe": recipe}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: Path) -> PreparedData:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        groups = np.load(folder / "groups.npy") if (folder / "groups.npy").exists() else None
    except Exception as error:  # of many kinds: numpy parses the head of a file as Python
        raise DataError(
            f"prepared data in {folder} is damaged ({error}); remove that folder to build it again"
        ) from error
    return PreparedData(arrays=arrays, groups=groups, info=meta["info"], folder=folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Indices of the samples that a job trains on and of those it is scored on."""

    train: np.ndarray
    scored: np.ndarray
    id: str
    """The same for the same samples in the same folds: their number, their order and their classes."""


def split(data: PreparedData, config: CrossValidationConfig) -> Split:
    """The split of ``config.fold`` (None: all but the test split, and that split), scored as ``config.score`` says.

    Raises DataError when ``config.split_id`` was recorded with other data: their test split could hold samples that
    these trained on.
    """
    folds = _folds(data, config)
    identity = hashlib.sha256(folds.tobytes() + np.asarray(data.arrays.get("labels", [])).tobytes()).hexdigest()[:16]
    if config.split_id not in (None, identity):
        raise DataError(
            "the data have changed: their samples or classes are not those that this study was made from, so its folds"
            " and its test split are others too; bring the old data back, or start a study of another name"
        )
    if config.fold is None:
        return Split(train=np.flatnonzero(folds[0] != TEST), scored=np.flatnonzero(folds[0] == TEST), id=identity)
    repeat, fold = divmod(config.fold, config.folds)
    others = (folds[repeat] != TEST) & (folds[repeat] != fold)
    scored = folds[repeat] == (TEST if config.score == "test" else fold)
    return Split(train=np.flatnonzero(others), scored=np.flatnonzero(scored), id=identity)


def _folds(data: PreparedData, config: CrossValidationConfig) -> np.ndarray:
    """(repeats, samples): the fold of each sample, TEST for the held-out ones. Kept beside the data, if those are."""
    recipe = config.model_dump(exclude={"fold", "score", "split_id"})
    path = data.folder and data.folder / f"folds-{_digest(recipe)}.npy"
    with contextlib.suppress(Exception):  # not there yet, or damaged
        stored = np.load(path) if path else np.empty(0)
        if stored.shape == (config.repeats, len(data)):
            return stored
    from training.folds import assign_folds

    folds = assign_folds(data.arrays.get("labels"), data.groups, config, num_samples=len(data))
    if path:
        write_atomically(path, _npy_bytes(folds))  # whoever else computes it writes the same
    return folds


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaders:
    """The batches of one rank. Training: an equal share of every global batch. Evaluation: each sample on one rank."""

    train: DataLoader[Batch]
    evaluate: DataLoader[Batch]
    sampler: Order
    micro_batches_per_step: int
    steps_per_epoch: int
    """Optimizer steps; the same on every rank."""
    eval_batches: int
    """Batches to score on the rank with the most of them."""
    train_samples: int
    scored: np.ndarray
    """Indices of the samples to score, of all ranks together; rank r scores ``scored[r::world_size]``."""
    split_id: str

    @property
    def eval_samples(self) -> int:
        """How many are scored, by all ranks together."""
        return len(self.scored)

    def evaluation(self) -> Iterator[tuple[Batch, bool]]:
        """Each batch to score, and whether it counts: a rank with fewer repeats its last, so that all work together."""
        batch: Batch = {}
        batches = iter(self.evaluate)
        for number in range(self.eval_batches):
            counts = number < len(self.evaluate)
            batch = next(batches) if counts else batch
            yield batch, counts

    def set_epoch(self, epoch: int, *, steps_done: int = 0) -> None:
        """Shuffle for this epoch: the same order for any number of ranks, from the first sample that is not done."""
        self.sampler.set_epoch(epoch)
        self.sampler.num_done = steps_done * self.micro_batches_per_step * (self.train.batch_size or 1)


class Order(DistributedSampler[Batch]):
    """In which a rank sees its samples in an epoch, less the first `num_done`."""

    num_done = 0
    """Of this rank's."""

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.num_done, None)


def build_loaders(data: PreparedData, config: JobConfig, context: RunContext, collate: Collate) -> Loaders:
    """The loaders of this rank for the job's fold. Raises DataError when a fold is smaller than one global batch."""
    chosen = split(data, config.cross_validation)
    train, scored = chosen.train, chosen.scored
    plan = config.batch_plan(context.world_size)
    if len(train) < config.training.global_batch_size:
        raise DataError(
            f"{len(train)} training samples are fewer than training.global_batch_size"
            f" {config.training.global_batch_size}; lower it or raise data.max_samples"
        )
    if len(scored) < context.world_size:
        raise DataError(f"{len(scored)} samples to score are fewer than the {context.world_size} ranks that share them")
    shard = ArrayDataset(data.arrays, train)
    sampler = Order(shard, num_replicas=context.world_size, rank=context.rank, seed=config.seed, drop_last=True)
    options: dict[str, Any] = {"num_workers": config.data.num_workers, "collate_fn": collate}
    options["worker_init_fn"] = functools.partial(_belong_to, os.getpid())
    options["pin_memory"] = context.device.type == "cuda"
    # Ranks score every world_size-th sample: no padding, so nothing is counted twice.
    mine = ArrayDataset(data.arrays, scored[context.rank :: context.world_size])
    return Loaders(
        train=DataLoader(shard, batch_size=plan.micro_batch_size, sampler=sampler, drop_last=True, **options),
        evaluate=DataLoader(mine, batch_size=plan.micro_batch_size, **options),
        sampler=sampler,
        micro_batches_per_step=plan.num_micro_batches,
        steps_per_epoch=len(train) // config.training.global_batch_size,
        eval_batches=math.ceil(math.ceil(len(scored) / context.world_size) / plan.micro_batch_size),
        train_samples=len(train),
        scored=scored,
        split_id=chosen.id,
    )


def _belong_to(rank: int, worker_id: int) -> None:
    """Have a loader's process die with that of its rank: one that waits to be read from would never notice."""
    if os.getppid() == rank:  # and not a server of multiprocessing's that forks for it
        die_with(rank)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


class ArrayDataset(Dataset[Batch]):
    """Rows of memory-mapped arrays, fetched a batch at a time."""

    def __init__(self, arrays: dict[str, np.ndarray], indices: np.ndarray) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}  # np.memmap is slow to index
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The samples at `positions` as one batch: ``{name: (len(positions), ...)}``."""
        rows = self._indices[list(positions)]
        return {name: torch.from_numpy(array[rows]) for name, array in self._arrays.items()}
