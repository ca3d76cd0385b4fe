"""Training from a script of your own, alone or under torchrun: one front over both engines (docs/own-training.md)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from training.config import DistributedConfig, JobConfig, Layer, assign, job_config
from training.data import PreparedData, build_loaders
from training.distributed import RunContext, run_context
from training.errors import ConfigError, Problem
from training.guardrails import inspect
from training.job import BuiltJob, keep_result, prepare_model
from training.reporter import RunDirReporter, SilentReporter
from training.run_dir import Finding, RunDir
from training.seeding import set_arithmetic
from training.tasks import Task, TrainingModule, load_task
from training.trainer import TrainingResult, lightning_is_installed, run_training

_SAID_HERE = [
    *(("distributed", key) for key in ("strategy", "devices", "num_nodes")),
    *(("training", key) for key in ("precision", "log_every_n_steps", "engine")),
]
"""The keys of a configuration that are keywords of the coordinator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCoordinator:
    """How and where to train. A None is what the `config` of `train` says, which is the schema's default unless set."""

    strategy: str | None = None
    precision: str | int | None = None
    devices: int | str | None = None
    """Ranks that the script must have been started with; `auto` is content with any number."""
    num_nodes: int | None = None
    log_every_n_steps: int | None = None
    engine: str | None = None
    enable_checkpointing: bool = True
    """False keeps no checkpoint in the run directory, but all the rest."""
    callbacks: Sequence[Any] = ()
    """For Lightning's Trainer; only its engine calls them."""

    def train(
        self,
        model: TrainingModule,
        data: PreparedData,
        task: Task | str,
        config: JobConfig | Mapping[str, Any] | None = None,
        run_dir: str | PathLike[str] | None = None,
        resume: bool = False,
    ) -> TrainingResult:
        """Train `model` in place (under fsdp each rank is left with its shard) and return how it ended. All ranks.

        `task` collates the batches; `config` is a job's configuration (epochs, batch, optimizer, folds, ...), less what
        `model` and `data` have settled. `run_dir` gets what a job leaves there, and is cleared first, or with `resume`
        taken up; without one nothing is kept. Raises what a job does: ConfigError, DataError, NonFiniteLossError.
        """
        if resume and run_dir is None:
            raise _error("resume", "without a run_dir there is nothing to resume; give the run_dir")
        settled = self._settled(task, config, run_dir)
        collate = (load_task(task) if isinstance(task, str) else task).collate
        with run_context(settled) as context:
            _check_ranks(settled.distributed, context)
            _check_same_weights(model, context)
            findings = [*_lone_rank(settled.distributed, context), *inspect(model, settled, context)]
            set_arithmetic(context.device)
            loaders = build_loaders(data, settled, context, collate)
            kept = None if run_dir is None else RunDir(Path(run_dir))
            if kept and context.is_main:
                kept.prepare(settled, resume=resume)
                kept.add_findings(findings)
                findings = kept.load_findings()
            for finding in findings if context.is_main else ():
                warnings.warn(str(finding), stacklevel=2)
            context.broadcast(True)  # no rank looks for a checkpoint before
            untrained = copy.deepcopy(model) if kept and context.sharded and context.is_main else model
            prepare_model(model, settled)
            reporter = RunDirReporter(kept, context, saves=self.enable_checkpointing) if kept else SilentReporter()
            result = run_training(model, loaders, settled, context, reporter, self.callbacks)
            if kept:
                job = BuiltJob(build_model=lambda: untrained, loaders=loaders)
                keep_result(result, model, job, kept, settled, context)
            return result

    def _settled(
        self, task: Task | str, config: JobConfig | Mapping[str, Any] | None, run_dir: str | PathLike[str] | None
    ) -> JobConfig:
        values = config.model_dump() if isinstance(config, JobConfig) else copy.deepcopy(dict(config or {}))
        values["task"] = task if isinstance(task, str) else f"{type(task).__module__}:{type(task).__name__}"
        for section, key in _SAID_HERE:
            if getattr(self, key) is not None:
                assign(values, (section, key), getattr(self, key))
        settled = job_config(Layer(values, {(): "TrainingCoordinator"}))
        if run_dir is None:
            settled = settled.with_values({"output.save_model": False, "output.keep_predictions": False})
        if self.callbacks and settled.training.engine == "native":
            raise _error("callbacks", "only Lightning calls them; add engine='lightning'")
        if self.callbacks and not lightning_is_installed():
            raise _error("callbacks", "only Lightning calls them, and it is missing; pip install 'hpo[lightning]'")
        return settled


def _check_ranks(config: DistributedConfig, context: RunContext) -> None:
    """Raises ConfigError unless the script was started with as many ranks as `config` asks for."""
    wanted = 1 if config.strategy == "none" else config.devices
    if isinstance(wanted, list):
        visible = ",".join(map(str, wanted))
        how = f"say devices={len(wanted)}, and start the script with CUDA_VISIBLE_DEVICES={visible}"
        raise _error("distributed.devices", f"a script cannot choose its GPUs; {how}")
    if wanted != "auto" and wanted * config.num_nodes != context.world_size:
        nodes = "" if config.num_nodes == 1 else f"--nnodes {config.num_nodes} "
        ranks = f"asks for {wanted * config.num_nodes} ranks, but this script was started as {context.world_size}"
        start = (
            "python script.py" if wanted == 1 and not nodes else f"torchrun {nodes}--nproc-per-node {wanted} script.py"
        )
        raise _error("distributed.devices", f"{ranks}; start it as: {start}")


def _lone_rank(config: DistributedConfig, context: RunContext) -> Iterator[Finding]:
    """What whoever launches a job tells of its devices."""
    if config.strategy in ("ddp", "fsdp") and context.world_size == 1:
        message = f"{config.strategy.upper()} requires multiple devices, falling back to single-process training"
        yield Finding(key="distributed.strategy", message=message, advice="start the script with torchrun")


def _check_same_weights(model: TrainingModule, context: RunContext) -> None:
    """Raises ConfigError when a `model` to be sharded is not the same one on every rank."""
    if context.sharded:  # ddp trains rank 0's weights
        total = sum((weight.detach().double().sum() for weight in model.parameters()), torch.zeros(()))
        if len(set(context.concatenate({"total": total.reshape(1)})["total"].tolist())) > 1:
            raise _error("model", "the ranks have built different weights; call torch.manual_seed before it is built")


def _error(place: str, message: str) -> ConfigError:
    return ConfigError([Problem(place=place, message=message)])
