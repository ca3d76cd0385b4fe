"""The repeated layers of a model (its transformer blocks), and what is done layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of each outermost ModuleList whose members are of one class; empty when there is none.

    ``bert.encoder.layer``, ``gpt2.h``, both towers of CLIP: what all of transformers' architectures have in common.
    """
    return list(_repeated(model))


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from _repeated(child)


def checkpoint_activations(model: nn.Module) -> None:
    """Have each layer keep only its input for backward and compute the rest again then, with the same dropout.

    Sublinear memory (Chen et al. 2016, arXiv 1604.06174). Before the model is wrapped.
    """
    for layer in repeated_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: nn.Module) -> None:
    """torch.compile of each layer (they share one compilation), or of the whole model when it has none."""
    for layer in repeated_layers(model) or [model]:
        layer.compile()
