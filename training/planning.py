"""What a job would take of a device under each strategy: ``python -m training.planning RUN_DIR REQUEST``.

Prepares the job's data, then traces one training step for each way of running it (see memory.py), without a GPU and
without weights. Leaves ``plan.json`` in the run directory, or ``error.json``. In a process of its own, because it
pretends to have a GPU. Not counted: evaluation, torch.compile, the CUDA context, host memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.atomic_files import write_atomically
from training.process import die_with_parent, fail, leave, redirect_output
from training.run_dir import PlanRequest, PlanRow, RunDir

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.config import JobConfig
    from training.config.batch import BatchPlan
    from training.data import PreparedData
    from training.distributed import RunContext
    from training.memory import StepMemory
    from training.tasks import Task

PLAIN = {"training.gradient_checkpointing": False, "distributed.cpu_offload": False}
CHECKPOINTING = {**PLAIN, "training.gradient_checkpointing": True}
OFFLOADED = {**CHECKPOINTING, "distributed.cpu_offload": True}
WAYS = (
    ("none", PLAIN),
    ("none", CHECKPOINTING),
    ("ddp", PLAIN),
    ("ddp", CHECKPOINTING),
    ("fsdp", PLAIN),
    ("fsdp", CHECKPOINTING),
    ("fsdp", OFFLOADED),
)
"""From the simplest and fastest to the one that takes least memory."""


def main() -> None:
    """Trace the job of the run directory in every way that the request asks for."""
    die_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    run_dir, request = RunDir(Path(sys.argv[1])), PlanRequest(**json.loads(sys.argv[2]))
    redirect_output(run_dir.log("plan"))
    try:
        rows = [asdict(row) for row in plan(run_dir.load_config(), request)]
        write_atomically(run_dir.plan, json.dumps(rows, indent=2).encode())
    except BaseException as error:
        fail(run_dir, error, rank=0)
    leave(0)


def plan(config: JobConfig, request: PlanRequest) -> Iterator[PlanRow]:
    """A row for each way; when it does not fit, with the largest micro-batch that does, or of one sample."""
    from training.tasks import load_task

    task = load_task(config.task)
    data = task.prepare(config)
    seen: set[tuple[str, int]] = set()
    for strategy, changes in WAYS if request.every_way else [(_strategy(config, request), {})]:
        world_size = 1 if strategy == "none" else request.world_size
        if world_size == 1 and strategy != "none":
            continue
        precision = {} if request.has_bfloat16 or config.training.precision != "auto" else {"training.precision": 32}
        tried = config.with_values({"distributed.strategy": strategy, **changes, **precision})
        row = _smaller_until_it_fits(task, data, tried, request, world_size)
        if (row.strategy, row.peak_bytes) not in seen:  # as when there are no layers to checkpoint
            seen.add((row.strategy, row.peak_bytes))
            yield row


def _strategy(config: JobConfig, request: PlanRequest) -> str:
    """The one that a job of `config` runs under."""
    asked = config.distributed.strategy
    return "none" if request.world_size == 1 or asked == "none" else "fsdp" if asked == "fsdp" else "ddp"


def _smaller_until_it_fits(
    task: Task, data: PreparedData, config: JobConfig, request: PlanRequest, world_size: int
) -> PlanRow:
    while True:
        batch = config.batch_plan(world_size)
        memory = trace(task, data, config, world_size)
        fits = memory.peak_bytes <= request.memory_bytes
        if fits or batch.micro_batch_size == 1 or not request.every_way:
            break
        smaller = {"training.max_micro_batch_size": batch.micro_batch_size // 2}
        config = config.with_values({"training.accumulate_grad_batches": "auto", **smaller})
    return PlanRow(
        strategy=config.distributed.strategy,
        world_size=world_size,
        gradient_checkpointing=config.training.gradient_checkpointing,
        cpu_offload=config.distributed.cpu_offload,
        micro_batch_size=batch.micro_batch_size,
        num_micro_batches=batch.num_micro_batches,
        parameters_bytes=memory.parameters_bytes,
        gradients_bytes=memory.gradients_bytes,
        optimizer_bytes=memory.optimizer_bytes,
        activations_bytes=memory.activations_bytes + memory.workspace_bytes,
        peak_bytes=memory.peak_bytes,
        fits=fits,
    )


def trace(task: Task, data: PreparedData, config: JobConfig, world_size: int) -> StepMemory:
    """Memory of one rank of `config` over `world_size` GPUs, whatever this machine has."""
    from training.fake_world import fake_world
    from training.memory import with_ddp_buckets

    if world_size == 1:
        return _trace_step(task, data, config, world_size)
    with fake_world(world_size):
        step = _trace_step(task, data, config, world_size)
    return with_ddp_buckets(step) if config.distributed.strategy == "ddp" else step


def _trace_step(task: Task, data: PreparedData, config: JobConfig, world_size: int) -> StepMemory:
    from training.gradients import backward
    from training.job import prepare_model
    from training.memory import trace_step
    from training.optimizer import build_optimizer
    from training.tasks import ContrastiveModule
    from training.tasks.pretrained import without_weights

    plan, context = config.batch_plan(world_size), _context(config, world_size)
    rows = _widest_rows(task, data, plan.micro_batch_size)

    def build() -> Any:
        with without_weights():
            model = prepare_model(task.build_model(config, data), config)
        return context.wrap(model) if context.sharded else model  # whose tensors are on the device from the start

    def step(model: Any) -> None:
        batch = _zeros(rows)
        backward(model, model, [batch] * min(2, plan.num_micro_batches), context, lambda loss: loss)
        if isinstance(model, ContrastiveModule) and plan.num_micro_batches > 2:
            _contrast(model, batch, plan, context)

    grad_norm = config.training.max_grad_norm
    return trace_step(build, lambda model: build_optimizer(model, config.optimizer), step, max_grad_norm=grad_norm)


def _contrast(model: Any, batch: dict[str, Tensor], plan: BatchPlan, context: RunContext) -> None:
    """The loss over all representations of a rank and all ranks, which grows with the square of the batch."""
    import torch

    with torch.no_grad(), context.precision.autocast():
        chunk = model(batch)
    whole = [torch.cat([each] * plan.num_micro_batches).requires_grad_() for each in chunk[:2]]
    loss = model.contrast(type(chunk)(*whole, chunk[2]), context)
    torch.autograd.grad(loss, whole)


def _context(config: JobConfig, world_size: int) -> RunContext:
    """Of rank 0, on a GPU that is not there; inside ``fake_world`` when there are several."""
    import torch

    from training.distributed import DistributedContext, RunContext
    from training.precision import Precision

    device = torch.device("cuda", 0)
    dtype = {32: None, "16-mixed": torch.float16}.get(config.training.precision, torch.bfloat16)
    place: Any = {"device": device, "precision": Precision(dtype=dtype, device_type="cuda"), "world_size": world_size}
    if world_size == 1:
        return RunContext(**place)
    if config.distributed.strategy == "fsdp":
        from training.fsdp import ShardedContext

        return ShardedContext(config=config.distributed, rank=0, **place)

    class Unwrapped(DistributedContext):
        """DDP's gathering without its buckets, which are added to what is traced."""

        def no_sync(self, parallel: Any) -> AbstractContextManager[None]:
            return nullcontext()

    return Unwrapped(config=config.distributed, rank=0, **place)


def _widest_rows(task: Task, data: PreparedData, size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each part of a batch of `size`, as the task collates it, of the longest samples there are."""
    import torch

    some = {name: torch.from_numpy(array[: min(2, len(array))].copy()) for name, array in data.arrays.items()}
    full = {name: tensor.shape[1:] for name, tensor in some.items()}
    collated = task.collate(some)
    return {name: ((size, *full.get(name, tensor.shape[1:])), tensor.dtype) for name, tensor in collated.items()}


def _zeros(rows: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    import torch

    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in rows.items()}


if __name__ == "__main__":
    main()
