"""One job from its configuration to its result: task, data, model, loop, files."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version

from training.config import JobConfig
from training.data import Loaders, build_loaders
from training.distributed import RunContext
from training.process import no_garbage_collection
from training.reporter import MainReporter, RankReporter
from training.run_dir import Outcome, RunDir
from training.seeding import seed_everything, set_arithmetic
from training.tasks import TrainingModule, load_task
from training.trainer import TrainingResult, run_training

REPORTED_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")


def build_job(config: JobConfig, context: RunContext) -> tuple[TrainingModule, Loaders]:
    """Everything a training needs, up to its first step. All ranks. Raises ConfigError and DataError."""
    task = load_task(config.task)
    data = task.prepare(config)
    seed_everything(config.seed)
    model = task.build_model(config, data).to(context.device)
    return model, build_loaders(data, config, context, task.collate)


def run_job(run_dir: RunDir, config: JobConfig, context: RunContext) -> None:
    """Train what `config` says and leave model and ``result.json`` in `run_dir`. All ranks; rank 0 writes."""
    set_arithmetic(context.device)
    with no_garbage_collection():
        model, loaders = build_job(config, context)
    reporter = MainReporter(run_dir) if context.is_main else RankReporter(run_dir)
    result = run_training(model, loaders, config, context, reporter)
    if not context.is_main:
        return
    if config.output.save_model and not result.stopped:
        model.save(run_dir.model)
    run_dir.write_result(_outcome(result, loaders, context))
    if not config.output.keep_checkpoint:
        shutil.rmtree(run_dir.checkpoints, ignore_errors=True)


def _outcome(result: TrainingResult, loaders: Loaders, context: RunContext) -> Outcome:
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
        versions={"python": platform.python_version(), **{name: version(name) for name in REPORTED_PACKAGES}},
    )
