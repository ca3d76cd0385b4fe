"""Where a rank runs and how ranks agree: one RunContext, with or without a process group.

The only module that reads torchrun's environment, picks a device, or opens and closes the process group. The trainer is
written once against RunContext; a single process is the same interface with nothing to synchronise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.config import DistributedConfig
from training.errors import ConfigError, DistributedStartError, Problem
from training.run_dir import JOB_ID

Statistics = dict[str, Tensor]


class RunContext:
    """One process that is the whole job. Also the interface; DistributedContext is the same over several ranks."""

    def __init__(self, *, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only one that reports and writes checkpoints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in training steps. All ranks."""
        return model

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Backward inside this block leaves gradients local (all but the last micro-batch of a step). All ranks."""
        return nullcontext()

    def sum(self, statistics: Statistics) -> Statistics:
        """Each tensor summed over the ranks, in float64 on the CPU. All ranks, same keys and shapes."""
        return {name: value.detach().to("cpu", torch.float64) for name, value in statistics.items()}

    def broadcast(self, flag: bool) -> bool:
        """Rank 0's `flag`, on every rank: rank 0 asks, all hear. All ranks."""
        return flag

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers (such as running means) on every rank, so that all evaluate the same model. All ranks."""


class DistributedContext(RunContext):
    """One rank of a data-parallel job (DDP)."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel: rank 0's weights everywhere, gradients averaged in backward."""
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Some classifiers of transformers (BigBird, XLNet, ...) never use some of their parameters.
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Skip the gradient all-reduce inside this block."""
        assert isinstance(model, DistributedDataParallel)
        return model.no_sync()

    def sum(self, statistics: Statistics) -> Statistics:
        """All statistics in one all-reduce."""
        local = super().sum(statistics)
        flat = torch.cat([value.reshape(-1) for value in local.values()]).to(self.device)
        dist.all_reduce(flat)
        parts = torch.split(flat.cpu(), [value.numel() for value in local.values()])
        return {name: part.reshape(value.shape) for (name, value), part in zip(local.items(), parts, strict=True)}

    def broadcast(self, flag: bool) -> bool:
        """Broadcast from rank 0, so that every rank leaves at the same step."""
        answer = torch.tensor([flag], dtype=torch.uint8, device=self.device)
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def share_buffers(self, model: nn.Module) -> None:
        """Broadcast each buffer from rank 0; DDP itself does so only before the next training step."""
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def run_context(config: DistributedConfig) -> Iterator[RunContext]:
    """Open this rank's context, and close the process group at the end, also after an error in a single process.

    After an error in a distributed job the group is left alone: closing it could wait for a peer that never comes,
    and the rank is about to exit. Raises DistributedStartError when the group cannot be formed,
    and ConfigError when torch cannot use the GPU it was given. All ranks.
    """
    if "WORLD_SIZE" not in os.environ:
        yield RunContext(rank=0, world_size=1, device=_device(config, local_rank=0))
        return
    context = _join(config)
    yield context
    dist.destroy_process_group()


def _join(config: DistributedConfig) -> DistributedContext:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = _device(config, local_rank=int(os.environ["LOCAL_RANK"]))
    backend = config.backend if config.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            timeout=timedelta(seconds=config.timeout_s),
            device_id=device if device.type == "cuda" and backend == "nccl" else None,
        )
        context = DistributedContext(rank=rank, world_size=world_size, device=device)
        context.sum({"ready": torch.ones(1)})
    except Exception as error:
        raise DistributedStartError(f"{backend} with {world_size} ranks did not start: {error}") from error
    return context


def _device(config: DistributedConfig, *, local_rank: int) -> torch.device:
    wants_gpu = config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())
    if not wants_gpu:
        if os.environ.get("CUDA_VISIBLE_DEVICES") and config.accelerator == "auto" and JOB_ID in os.environ:
            message = (
                f"this job was given a GPU, but torch {torch.__version__} cannot use it: install a CUDA build that fits"
                " the driver, or set distributed.accelerator: cpu"
            )
            raise ConfigError([Problem(place="distributed.accelerator", message=message)])
        return torch.device("cpu")
    # The launcher narrows CUDA_VISIBLE_DEVICES to this job's GPUs, so local ranks count from zero.
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
