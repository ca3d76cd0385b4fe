"""One job from its configuration to its result: task, data, model, loop, files."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from training.config import JobConfig
from training.data import Loaders, build_loaders
from training.distributed import RunContext
from training.guardrails import inspect
from training.layers import checkpoint_activations, compile_layers
from training.predictions import write_predictions
from training.process import no_garbage_collection
from training.reporter import RunDirReporter
from training.run_dir import ROUNDING, Outcome, RunDir
from training.seeding import seed_everything, set_arithmetic
from training.tasks import ContrastiveModule, TrainingModule, load_task
from training.trainer import TrainingResult, run_training
from training.versions import version_of

REPORTED_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltJob:
    """Everything a training needs, up to its first step."""

    build_model: Callable[[], TrainingModule]
    """Makes the untrained model, on the CPU; the same one each time."""
    loaders: Loaders


def build_job(config: JobConfig, context: RunContext) -> BuiltJob:
    """Prepare the data and say how the model is made. All ranks. Raises ConfigError and DataError."""
    task = load_task(config.task)
    seed_everything(config.seed)  # or what a task draws would depend on what this process did before
    data = task.prepare(config)

    def build_model() -> TrainingModule:
        seed_everything(config.seed)
        return prepare_model(task.build_model(config, data), config)

    return BuiltJob(build_model=build_model, loaders=build_loaders(data, config, context, task.collate))


def prepare_model(model: TrainingModule, config: JobConfig) -> TrainingModule:
    """Say how `model` computes: gradient cache, checkpointing and compilation, in place. All ranks."""
    if isinstance(model, ContrastiveModule):
        model.cache_gradients = config.gradient_cache.enabled is not False
    if config.training.gradient_checkpointing:
        checkpoint_activations(model)
    if config.training.compile:
        compile_layers(model)
    return model


def run_job(run_dir: RunDir, config: JobConfig, context: RunContext) -> None:
    """Train what `config` says and leave model and ``result.json`` in `run_dir`. All ranks; rank 0 writes."""
    set_arithmetic(context.device)
    with no_garbage_collection():
        job = build_job(config, context)
    model = job.build_model()
    findings = inspect(model, config, context)
    if context.is_main:
        run_dir.add_findings(findings)
    result = run_training(model, job.loaders, config, context, RunDirReporter(run_dir, context))
    keep_result(result, model, job, run_dir, config, context)


def keep_result(
    result: TrainingResult,
    model: TrainingModule,
    job: BuiltJob,
    run_dir: RunDir,
    config: JobConfig,
    context: RunContext,
) -> None:
    """Leave the trained `model`, its predictions and ``result.json`` in `run_dir`. All ranks; rank 0 writes."""
    if config.output.save_model and not result.stopped:
        trained = context.whole(model, job.build_model)
        if context.is_main:
            trained.save(run_dir.model)
    if result.predictions is not None:
        write_predictions(run_dir.predictions, result.predictions)
    if context.is_main:
        is_paused = result.stopped and (run_dir.keeps_checkpoint() or result.epochs == config.output.pause_after)
        run_dir.write_result(replace(_outcome(result, job.loaders, context), paused=is_paused))
        if config.output.keep_checkpoint or is_paused:
            run_dir.keep_newest_checkpoint()
        else:
            shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    context.broadcast(True)  # no rank leaves, and is missed, before the result is written


def _outcome(result: TrainingResult, loaders: Loaders, context: RunContext) -> Outcome:
    is_exact = context.device.type == "cpu"  # a GPU has kernels that are not, such as fused attention's backward
    return Outcome(
        metrics=result.metrics,
        stopped=result.stopped,
        epochs=result.epochs,
        steps=result.steps,
        train_samples=loaders.train_samples,
        eval_samples=loaders.eval_samples,
        split_id=loaders.split_id,
        world_size=context.world_size,
        device=str(context.device),
        versions=_versions(context),
        tolerance=0.0 if is_exact else max(ROUNDING, 1 / loaders.eval_samples),
    )


def _versions(context: RunContext) -> dict[str, str]:
    """Of what computes: on a CPU also the instructions it has, which torch's kernels follow."""
    packages = {name: version_of(name) for name in REPORTED_PACKAGES}
    cpu = {"cpu": torch.backends.cpu.get_cpu_capability()} if context.device.type == "cpu" else {}
    return {"python": platform.python_version(), **packages, **cpu}
