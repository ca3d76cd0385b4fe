"""The gradients of one optimizer step, from the micro-batches that a rank has of it.

Most losses are means over samples (or tokens): micro-batches are added up. A contrastive loss compares every sample
with every other one, over micro-batches and ranks; it is computed on all representations at once, and its gradient
is carried through the encoder chunk by chunk (gradient cache, Gao et al. 2021, arXiv 2101.06983).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from training.data import Batch, to_device
from training.distributed import RunContext
from training.tasks.task import ContrastiveModule, Representations, TrainingModule

Scale = Callable[[Tensor], Tensor]
"""What a GradScaler does to a loss before backward."""


def backward(
    model: TrainingModule, parallel: nn.Module, batches: Sequence[Batch], context: RunContext, scale: Scale
) -> Tensor:
    """Add the gradient of the mean loss over the ranks' `batches` to ``model``'s parameters. All ranks.

    The batches are on the CPU and go to the device one at a time; `parallel` is what ``context.wrap`` made of `model`.
    Returns this rank's part of the loss: its mean over the ranks is the loss of the global batch.
    """
    if isinstance(model, ContrastiveModule) and model.cache_gradients and len(batches) > 1:
        return _cached(model, parallel, batches, context, scale)
    return _accumulated(model, parallel, batches, context, scale)


def _accumulated(
    model: TrainingModule, parallel: nn.Module, batches: Sequence[Batch], context: RunContext, scale: Scale
) -> Tensor:
    """Micro-batches one after the other; ranks meet in the backward of the last one."""
    shares = _shares(model, batches, context)
    losses = []
    for index, batch in enumerate(batches):
        with _sync_on(index == len(batches) - 1, context, parallel):
            with context.precision.autocast():
                output = parallel(to_device(batch, context.device))
            loss = model.contrast(output, context) if isinstance(model, ContrastiveModule) else output
            loss = loss if shares is None else shares[index] * loss
            scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return functools.reduce(torch.add, losses)


def _shares(model: TrainingModule, batches: Sequence[Batch], context: RunContext) -> Sequence[float] | None:
    """What each micro-batch's mean counts for; None when one is all there is, and nothing need wait for its weight.

    Ranks average gradients, so the shares of all ranks sum to world_size. Without this, sequences of unlike lengths
    would count differently on one rank than on two.
    """
    if len(batches) == context.world_size == 1:
        return None
    weights = [model.weight(batch) for batch in batches]
    if weights[0] is None:
        return [1.0 / len(batches)] * len(batches)
    stacked = torch.stack([weight for weight in weights if weight is not None])
    total = context.sum({"weight": stacked.sum()})["weight"].item() or 1.0  # as of texts that predict nothing
    return [weight * context.world_size / total for weight in stacked.tolist()]


def _cached(
    model: ContrastiveModule, parallel: nn.Module, batches: Sequence[Batch], context: RunContext, scale: Scale
) -> Tensor:
    """Chunks without a graph; the loss over all representations; chunks again, with the cached gradient."""
    states, chunks = [], []
    for batch in batches:
        states.append(_RandomState(context.device))
        with torch.no_grad(), context.precision.autocast():
            chunks.append(Representations(*model(to_device(batch, context.device))))
    first, second, sharpness = zip(*chunks, strict=True)
    whole = Representations(torch.cat(first), torch.cat(second), sharpness[0])
    leaves = Representations(*(tensor.detach().requires_grad_() for tensor in whole))
    loss = model.contrast(leaves, context)
    gradients = torch.autograd.grad(scale(loss), leaves, allow_unused=True, materialize_grads=True)
    rows = [torch.split(gradient, [len(chunk) for chunk in first]) for gradient in gradients[:2]]
    for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
        is_last = index == len(batches) - 1
        with _sync_on(is_last, context, parallel):
            with state.replayed(), context.precision.autocast():
                again = Representations(*parallel(to_device(batch, context.device)))
            # The same number in every chunk, so its gradient goes through one of them.
            pull = (again.sharpness * gradients[2]).sum() * float(is_last)
            for representation, gradient in zip(again[:2], rows, strict=True):
                pull = pull + (representation * gradient[index]).sum()
            pull.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _sync_on(condition: bool, context: RunContext, parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if condition else context.no_sync(parallel)


class _RandomState:
    """The random numbers to come, so that dropout draws the same ones twice."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if self._devices else None

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside the block they come again; after it, they go on as if it had not been."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            if self._gpu is not None:
                torch.cuda.set_rng_state(self._gpu, self._devices[0])
            yield
