"""What a job would take of a device under each strategy: ``python -m training.planning RUN_DIR REQUEST``.

Prepares the job's data, then traces one training step for each way of running it (see memory.py), without a GPU and
without weights. It leaves
``plan.json`` in the run directory, or ``error.json``. A process of its own, because it pretends to have a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.process import die_with_parent, fail, leave, redirect_output
from training.run_dir import PlanRequest, PlanRow, RunDir, write_atomically

if TYPE_CHECKING:
    from training.config import JobConfig
    from training.data import PreparedData
    from training.memory import StepMemory
    from training.tasks import Task

CHECKPOINTING = {"training.gradient_checkpointing": True}
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("none", CHECKPOINTING),
    ("ddp", {}),
    ("ddp", CHECKPOINTING),
    ("fsdp", {}),
    ("fsdp", CHECKPOINTING),
    ("fsdp", {**CHECKPOINTING, "distributed.cpu_offload": True}),
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
        tried = config.with_values({"distributed.strategy": strategy, **changes})
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

    if config.distributed.strategy == "fsdp":
        with fake_world(world_size):
            return _trace_step(task, data, config, world_size)
    step = _trace_step(task, data, config, world_size)
    return with_ddp_buckets(step) if world_size > 1 else step


def _trace_step(task: Task, data: PreparedData, config: JobConfig, world_size: int) -> StepMemory:
    import torch

    from training.distributed import RunContext
    from training.gradients import backward
    from training.job import prepare_model
    from training.memory import trace_step
    from training.optimizer import build_optimizer
    from training.precision import Precision
    from training.tasks.pretrained import without_weights

    device = torch.device("cuda", 0)
    dtype = {32: None, "16-mixed": torch.float16}.get(config.training.precision, torch.bfloat16)
    precision = Precision(dtype=dtype, device_type="cuda")
    context = RunContext(device=device, precision=precision)
    if config.distributed.strategy == "fsdp":
        from training.fsdp import ShardedContext

        context = ShardedContext(
            config=config.distributed, rank=0, world_size=world_size, device=device, precision=precision
        )
    batch = config.batch_plan(world_size)

    def build() -> Any:
        with without_weights():
            model = prepare_model(task.build_model(config, data), config)
        return context.wrap(model)

    def step(model: Any) -> None:
        some = {
            name: torch.zeros((batch.micro_batch_size, *array.shape[1:]), dtype=torch.from_numpy(array[:1]).dtype)
            for name, array in data.arrays.items()
        }
        backward(model, model, [some] * min(2, batch.num_micro_batches), context, lambda loss: loss)

    grad_norm = config.training.max_grad_norm
    return trace_step(build, lambda model: build_optimizer(model, config.optimizer), step, max_grad_norm=grad_norm)


if __name__ == "__main__":
    main()
