"""Where a rank runs and how ranks agree: one RunContext, with or without a process group.

The only module that reads torchrun's environment, picks a device, or opens and closes the process group. The trainer is
written once against RunContext: a single process (here), DDP (here) and FSDP (fsdp.py) are the same interface.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from training.config import DistributedConfig, JobConfig
from training.errors import ConfigError, DistributedStartError, Problem
from training.job_processes import JOB_ID
from training.precision import Precision, choose_precision

Statistics = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)
_GROUPS = itertools.count()
"""A script may train several times. A second group must not find the addresses that the first one left in the store."""


class RunContext:
    """One process that is the whole job. Also the interface; DistributedContext is the same over several ranks."""

    sharded = False
    """Whether each rank holds a part of the model only, and checkpoints are written by all of them together."""
    keeps_gradients = False
    """Whether gradients are zeroed between steps instead of freed, because they are views of a buffer that stays."""

    def __init__(
        self, *, rank: int = 0, world_size: int = 1, device: torch.device, precision: Precision | None = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.precision = precision or Precision(device_type=device.type)

    @classmethod
    def alone(cls) -> RunContext:
        """One process on the CPU."""
        return cls(device=torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only one that reports."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, in place, and return what to call in training steps. All ranks."""
        return model.to(self.device)

    def no_sync(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """Backward inside this block leaves gradients local (all but the last micro-batch of a step). All ranks."""
        return nullcontext()

    def sum(self, statistics: Statistics) -> Statistics:
        """Each tensor summed over the ranks, in float64 on the CPU. All ranks, same keys and shapes."""
        return {name: value.detach().to("cpu", torch.float64) for name, value in statistics.items()}

    def concatenate(self, rows: Statistics) -> Statistics:
        """The rows of all ranks one after the other, on the CPU. All ranks, same keys, any number of rows."""
        return {name: value.detach().cpu() for name, value in rows.items()}

    def gather(self, rows: Tensor) -> Tensor:
        """(world_size x n, ...) from (n, ...), in the order of the ranks; gradients flow back to each. All ranks."""
        return rows

    def broadcast(self, flag: bool) -> bool:
        """Rank 0's `flag`, on every rank: rank 0 asks, all hear. All ranks."""
        return flag

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers (such as running means) on every rank, so that all evaluate the same model. All ranks."""

    def whole(self, model: Module, build: Callable[[], Module]) -> Module:
        """`model` with all its weights, as `build` makes it; on rank 0 only, the others may get a part. All ranks."""
        return model


class DistributedContext(RunContext):
    """One rank of a data-parallel job (DDP)."""

    keeps_gradients = True

    def __init__(self, *, config: DistributedConfig, **place: Any) -> None:
        super().__init__(**place)
        self.config = config

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel: rank 0's weights everywhere, gradients averaged in backward."""
        if self.config.sync_batchnorm and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        ids = [self.device.index] if self.device.type == "cuda" else None
        unused = self.config.find_unused_parameters
        return DistributedDataParallel(
            model.to(self.device),
            device_ids=ids,
            find_unused_parameters=unused,
            gradient_as_bucket_view=True,  # or each gradient is there twice
        )

    def no_sync(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """Skip the gradient all-reduce inside this block."""
        assert isinstance(parallel, DistributedDataParallel)
        return parallel.no_sync()

    def sum(self, statistics: Statistics) -> Statistics:
        """All statistics in one all-reduce."""
        local = super().sum(statistics)
        flat = torch.cat([value.reshape(-1) for value in local.values()]).to(self.device)
        dist.all_reduce(flat)
        parts = torch.split(flat.cpu(), [value.numel() for value in local.values()])
        return {name: part.reshape(value.shape) for (name, value), part in zip(local.items(), parts, strict=True)}

    def concatenate(self, rows: Statistics) -> Statistics:
        """Ranks may have different numbers of rows, so they travel as objects."""
        every: list[Statistics] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(every, super().concatenate(rows))
        return {name: torch.cat([part[name] for part in every]) for name in rows}

    def gather(self, rows: Tensor) -> Tensor:
        """An all-gather whose backward sums what the ranks made of these rows."""
        gathered: Tensor = _Gather.apply(rows, self.rank, self.world_size)  # type: ignore[no-untyped-call]
        return gathered

    def broadcast(self, flag: bool) -> bool:
        """Broadcast from rank 0, so that every rank leaves at the same step."""
        answer = torch.tensor([flag], dtype=torch.uint8, device=self.device)
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def share_buffers(self, model: nn.Module) -> None:
        """Broadcast each buffer from rank 0; DDP itself does so only before the next training step."""
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class _Gather(torch.autograd.Function):
    """All-gather along the rows. Backward is an all-reduce, since gloo has no reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rank = rank
        parts = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        rows = len(total) // dist.get_world_size()
        return total[ctx.rank * rows : (ctx.rank + 1) * rows], None, None


@contextlib.contextmanager
def run_context(config: JobConfig, *, is_last: bool = False) -> Iterator[RunContext]:
    """Open this rank's context, and close the process group at the end, also after an error in a single process.

    After an error in a distributed job the group is left alone: closing it could wait for a peer that never comes,
    and the rank is about to exit. Raises DistributedStartError when the group cannot be formed,
    and ConfigError when torch cannot use the GPU it was given. `is_last`: the process ends after it. All ranks.
    """
    if "WORLD_SIZE" not in os.environ:
        device = _device(config.distributed, local_rank=0)
        yield RunContext(device=device, precision=choose_precision(config.training.precision, device))
        return
    if "LOCAL_RANK" not in os.environ:
        message = "there is WORLD_SIZE in the environment but no LOCAL_RANK; start the ranks with torchrun"
        raise ConfigError([Problem(place="torchrun", message=message)])
    device = _device(config.distributed, local_rank=int(os.environ["LOCAL_RANK"]))
    _join(config.distributed, device)
    try:
        yield joined_context(config, device)
    except ConfigError:  # found by all ranks alike, so that nobody waits
        dist.destroy_process_group()
        raise
    if not (is_last and device.type == "cpu"):  # gloo's threads take a while to join; a process that ends need not wait
        dist.destroy_process_group()


def _join(config: DistributedConfig, device: torch.device) -> None:
    """Open the process group, and meet in it once."""
    backend: str = "gloo" if device.type == "cpu" else "nccl" if config.backend == "auto" else config.backend
    if config.cpu_offload and backend == "nccl":  # the norm of offloaded gradients is summed between CPUs
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=config.timeout_s)))
        dist.init_process_group(
            backend,
            store=PrefixStore(f"group_{next(_GROUPS)}", store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if backend.endswith("nccl") else None,
        )
        dist.all_reduce(torch.ones(1, device=device))
    except Exception as error:
        ranks = os.environ["WORLD_SIZE"]
        raise DistributedStartError(f"{backend} with {ranks} ranks did not start: {error}") from error


def joined_context(config: JobConfig, device: torch.device) -> DistributedContext:
    """The context of a job whose process group is open."""
    kind = DistributedContext
    if config.distributed.strategy == "fsdp":
        from training.fsdp import ShardedContext  # its imports cost half a second, which other ranks need not pay

        kind = ShardedContext
    return kind(
        config=config.distributed,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=device,
        precision=choose_precision(config.training.precision, device),
    )


def _device(config: DistributedConfig, *, local_rank: int) -> torch.device:
    was_given_one = bool(JOB_ID in os.environ and os.environ.get("CUDA_VISIBLE_DEVICES"))
    needs_one = config.accelerator == "cuda" or (config.accelerator == "auto" and was_given_one)
    if needs_one and not torch.cuda.is_available():
        message = (
            f"this job is to use a GPU, and torch {torch.__version__} cannot: install a CUDA build that fits the"
            " driver, or set distributed.accelerator: cpu"
        )
        raise ConfigError([Problem(place="distributed.accelerator", message=message)])
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # The launcher narrows CUDA_VISIBLE_DEVICES to this job's GPUs, so local ranks count from zero.
    if local_rank >= torch.cuda.device_count():
        message = f"there is no GPU for local rank {local_rank}, only {torch.cuda.device_count()}; start fewer ranks"
        raise ConfigError([Problem(place="distributed.devices", message=message)])
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
