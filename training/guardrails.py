"""What is wrong, useless or silently changed in a job, told before its first step: configuration against hardware.

Which devices a job gets is decided, and changes of that told, by whoever launches it (hpo/devices.py); all that takes
the model or torch to know is found here. Findings are kept in the run directory, and told to the user once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.config import JobConfig
from training.distributed import RunContext
from training.errors import ConfigError, Problem
from training.layers import repeated_layers
from training.run_dir import Finding
from training.tasks.task import ContrastiveModule, TrainingModule
from training.trainer import lightning_is_installed

SMALL_SHARD_PARAMETERS = 10_000_000
"""Fewer parameters than this per rank are not worth sharding: DDP moves the same bytes, and waits less often."""
AMPERE = (8, 0)
"""Compute capability of the first GPUs that multiply bfloat16."""


def inspect(model: TrainingModule, config: JobConfig, context: RunContext) -> list[Finding]:
    """What there is to tell of a job, before `model` is wrapped. All ranks find the same.

    Raises ConfigError, with every error there is.
    """
    found = [*errors(model, config), *_uncompilable(config, context.device)]
    if found:
        raise ConfigError(found)
    return [
        *_strategy(model, config, context),
        *_precision(config, context.device),
        *_useless(model, config, context),
    ]


def errors(model: TrainingModule, config: JobConfig) -> Iterator[Problem]:
    """What no device can train."""
    cache = config.gradient_cache
    if not isinstance(model, ContrastiveModule) and (cache.enabled is True or cache.chunk_size is not None):
        message = f"the loss of {config.task} is not contrastive, so there is nothing to cache; use accumulation"
        yield Problem(place=f"gradient_cache.{'enabled' if cache.enabled is True else 'chunk_size'}", message=message)
    if config.lora is not None and not any("lora_" in name for name, _ in model.named_parameters()):
        message = f"the model of {config.task} has no adapters: lora is for transformers models; remove it"
        yield Problem(place="lora", message=message)
    if config.lora is not None and not config.lora.merge and config.model.pretrained is None:
        message = "lora.merge: false saves the adapter alone, and the random weights beside it would be lost; merge it"
        yield Problem(place="lora.merge", message=message)
    if config.output.save_model and type(model).save is TrainingModule.save:
        message = f"output.save_model: {type(model).__name__} has no method save; write one, or say false"
        yield Problem(place="output.save_model", message=message)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield Problem(place="model", message="no parameter is to be trained; unfreeze some")


def _uncompilable(config: JobConfig, device: torch.device) -> Iterator[Problem]:
    compilers = [name for name in ("g++", "c++", "clang++") if shutil.which(name)]
    if config.training.compile and device.type == "cpu" and not compilers:
        message = "compiling for a CPU takes a C++ compiler, and there is no g++; install one, or turn it off"
        yield Problem(place="training.compile", message=message)


def _strategy(model: nn.Module, config: JobConfig, context: RunContext) -> Iterator[Finding]:
    if not context.sharded:
        return
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not repeated_layers(model):
        yield Finding(
            key="distributed.strategy",
            message="fsdp finds no repeated layers, so the whole model is gathered at once",
            advice="use ddp, unless the optimizer's state alone is too large",
        )
    elif parameters < SMALL_SHARD_PARAMETERS * context.world_size:
        yield Finding(
            key="distributed.strategy",
            message=f"{parameters / 1e6:.1f} M parameters are few to shard over {context.world_size} ranks",
            advice="ddp is likely faster",
        )
    if context.device.type == "cuda" and torch.cuda.get_device_capability(context.device) < AMPERE:
        yield Finding(
            key="distributed.strategy",
            message="fsdp on a GPU older than Ampere has no bfloat16 to gather its weights in",
            advice="use ddp with 16-mixed, and gradient_checkpointing for memory",
        )


def _precision(config: JobConfig, device: torch.device) -> Iterator[Finding]:
    asked = config.training.precision
    if asked == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(
            key="training.precision",
            message=f"{torch.cuda.get_device_name(device)} has no bfloat16, so 16-mixed is used",
            advice="write precision: 16-mixed, or auto for 32",
        )
    if asked == "16-mixed" and device.type == "cpu":
        yield Finding(
            key="training.precision",
            message="a CPU computes float16 more slowly than float32",
            advice="use 32 here; 16-mixed is for GPUs without bfloat16",
        )


def _useless(model: TrainingModule, config: JobConfig, context: RunContext) -> Iterator[Finding]:
    """What was asked for and has no effect."""
    distributed, training = config.distributed, config.training
    if distributed.sync_batchnorm and (context.device.type != "cuda" or context.sharded or context.world_size == 1):
        yield _no_effect("distributed.sync_batchnorm", "it is for ddp on several GPUs")
    elif distributed.sync_batchnorm and not any(isinstance(module, _BatchNorm) for module in model.modules()):
        yield _no_effect("distributed.sync_batchnorm", "the model has no batch normalization")
    if distributed.cpu_offload and not (context.sharded and context.device.type == "cuda"):
        yield _no_effect("distributed.cpu_offload", "it is for fsdp on GPUs")
    if training.gradient_checkpointing and not repeated_layers(model):
        yield _no_effect("training.gradient_checkpointing", "the model has no repeated layers")
    if config.lora is not None and config.model.pretrained is None:
        yield Finding(
            key="lora",
            message="adapters are trained beside random weights, which stay as they are",
            advice="start from model.pretrained, or remove lora",
        )
    if training.engine == "lightning" and not lightning_is_installed():
        yield Finding(
            key="training.engine",
            message="lightning is not installed, so the native loop trains instead, to the same losses",
            advice="pip install 'hpo[lightning]'",
        )
    if config.gradient_cache.enabled is False and config.gradient_cache.chunk_size is not None:
        yield _no_effect("gradient_cache.chunk_size", "the cache is off; training.max_micro_batch_size limits")
    several = config.batch_plan(context.world_size).num_micro_batches > 1
    if isinstance(model, ContrastiveModule) and config.gradient_cache.enabled is False and several:
        yield Finding(
            key="gradient_cache.enabled",
            message="each micro-batch is contrasted by itself, so the loss depends on their number",
            advice="leave it at auto to contrast the whole batch",
        )


def _no_effect(key: str, reason: str) -> Finding:
    return Finding(key=key, message=f"has no effect here: {reason}", advice="remove it")
