"""Optimizer and learning-rate schedule of a job."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.config.schema import OptimizerConfig, SchedulerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """AdamW or SGD, fused; weight decay on matrices only (biases and normalization weights are vectors).

    Sharded parameters get SGD's unfused form, which gives the same numbers: torch 2.13 has no fused one for them.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        is_whole = all(type(parameter) is nn.Parameter for parameter in parameters)
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=is_whole)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, *, total_steps: int) -> LambdaLR:
    """Linear warmup over ``warmup_ratio`` of `total_steps`, then the named decay to zero (or none)."""
    warmup = round(config.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total_steps - warmup)
        match config.name:
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
            case "linear":
                return max(0.0, 1.0 - progress)
            case "constant":
                return 1.0

    return LambdaLR(optimizer, factor)
