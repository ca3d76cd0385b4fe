"""One rank of a sharded job (FSDP2): each rank keeps a part of every weight, its gradient and its optimizer state.

A layer's weights are gathered just before they are used and freed after (Zhao et al. 2023, arXiv 2304.11277).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from training.distributed import DistributedContext, Module
from training.errors import ConfigError, Problem
from training.layers import repeated_layers


class ShardedContext(DistributedContext):
    """One rank of an FSDP job. The model is changed in place: every rank holds its shard of it afterwards."""

    sharded = True
    keeps_gradients = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard layer by layer, then what is left (embeddings, head) as one more group. The model may be on the CPU.

        In mixed precision weights are gathered in 16 bits, but for those of a module that says ``keeps_float32``.

        Raises ConfigError when a trained parameter has no dimension to shard along.
        """
        scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        _refuse_trained(model, scalars)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.world_size,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=self.precision.dtype, reduce_dtype=torch.float32),
            "ignored_params": scalars,
        }
        if self.config.cpu_offload and self.device.type == "cuda":
            options["offload_policy"] = CPUOffloadPolicy()
        for module in model.modules():
            if getattr(module, "keeps_float32", False):
                fully_shard(module, **{**options, "mp_policy": MixedPrecisionPolicy()})
        for layer in repeated_layers(model):
            fully_shard(layer, **options)
        fully_shard(model, **options)
        register_fsdp_forward_method(model, "evaluate")
        for scalar in scalars:
            scalar.data = scalar.to(self.device)
        return model

    def no_sync(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay unsharded and unreduced inside this block."""
        return _no_sync(parallel)

    def whole(self, model: Module, build: Callable[[], Module]) -> Module:
        """Gather all weights on rank 0's CPU and put them into a model that `build` makes there."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        if not self.is_main:
            return model
        built = build()
        built.load_state_dict(state)
        return built


@contextlib.contextmanager
def _no_sync(parallel: nn.Module) -> Iterator[None]:
    assert isinstance(parallel, FSDPModule)
    parallel.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        parallel.set_requires_gradient_sync(True)


def _refuse_trained(model: nn.Module, scalars: set[nn.Parameter]) -> None:
    names = [name for name, each in model.named_parameters() if each in scalars and each.requires_grad]
    if names:
        message = f"fsdp cannot shard the scalar parameters {', '.join(names)}; give them the shape (1,), or use ddp"
        raise ConfigError([Problem(place="distributed.strategy", message=message)])
