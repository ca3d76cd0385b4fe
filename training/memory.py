"""How much device memory one training step takes, found by running it on tensors without data.

`trace_step` takes a model, an optimizer and a step as functions and lets them run inside ``fake_device``. A ledger
sees every operation, knows the storages that are alive after it, and keeps the largest sum: what
``torch.cuda.max_memory_allocated`` would say. Parameters, gradients and optimizer state are thereby counted exactly;
activations as far as the kernels are known.

Not seen: what a kernel needs only while it runs (but for the ones in `_workspace_bytes`), and memory outside torch's
allocator: the CUDA context and NCCL, several hundred MiB together.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Literal, Self, TypeVar
from unittest import mock

import torch
from torch import Tensor, UntypedStorage, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.fake_device import fake_device

Model = TypeVar("Model", bound=nn.Module)

ALLOCATION_BYTES = 512
"""CUDA's caching allocator hands out multiples of this (kMinBlockSize in c10/cuda/CUDACachingAllocator.h)."""

BLAS_WORKSPACE_BYTES = 2 * 32 * 2**20
"""cuBLAS's, from the same allocator: one for the thread of forward and one for autograd's, of the size that torch takes
on sm90 and that ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` asks for (ATen/cuda/CublasHandlePool.cpp)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Peak memory of one training step on one device, by what holds it. The parts add up to `peak_bytes`."""

    parameters_bytes: int
    """Parameters and buffers."""
    gradients_bytes: int
    """Gradients when all are there, at the end of backward."""
    optimizer_bytes: int
    """Optimizer state, from the second step on."""
    activations_bytes: int
    """What the peak takes beyond the above: activations, the batch, temporary tensors, casted and gathered weights."""
    workspace_bytes: int
    """What cuBLAS keeps for itself."""
    activations_alone_bytes: int
    """The most that activations ever take, whether or not gradients are there at that time."""

    @property
    def peak_bytes(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        held = self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes
        return held + self.activations_bytes + self.workspace_bytes


class Kind(Enum):
    """What a storage is for."""

    PARAMETER = auto()
    GRADIENT = auto()
    OPTIMIZER = auto()
    ACTIVATION = auto()


def with_ddp_buckets(step: StepMemory) -> StepMemory:
    """The same step under DistributedDataParallel, whose gradients are views of buckets that are never freed."""
    return replace(step, activations_bytes=step.activations_alone_bytes)


def trace_step(
    build_model: Callable[[], Model],
    build_optimizer: Callable[[Model], Optimizer],
    forward_and_backward: Callable[[Model], object],
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    max_grad_norm: float | None = 1.0,
) -> StepMemory:
    """The peak of a training's second step, when optimizer state exists, on one device.

    `build_model` builds, moves to `device` and wraps; inside ``fake_world`` that may be FSDP2. `forward_and_backward`
    gets the model in training mode, makes its batches itself (``torch.zeros`` will do, there is no data) and leaves
    gradients; of many micro-batches two are enough. Without data, a model of any size takes seconds.
    Raises TrainingError where this torch cannot pretend to have a GPU, and what the functions raise, which includes
    torch's ``DynamicOutputShapeException`` for a model whose shapes depend on its data.
    """
    with fake_device(device):
        model = build_model().train()
        optimizer = build_optimizer(model)
        with Ledger(device) as ledger, _gradients_known(model, ledger):
            ledger.assign(Kind.PARAMETER, [*model.parameters(), *model.buffers()])
            forward_and_backward(model)
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            ledger.assign(Kind.GRADIENT, gradients)
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            with ledger.paused():  # the state of a first step appears; it was there all along in the second
                optimizer.step()
            ledger.assign(Kind.OPTIMIZER, tree_leaves([list(state.values()) for state in optimizer.state.values()]))
            optimizer.step()
    held = ledger.bytes[Kind.PARAMETER] + ledger.bytes[Kind.GRADIENT]
    return StepMemory(
        parameters_bytes=ledger.bytes[Kind.PARAMETER],
        gradients_bytes=ledger.bytes[Kind.GRADIENT],
        optimizer_bytes=ledger.bytes[Kind.OPTIMIZER],
        activations_bytes=ledger.peak_bytes - held,
        workspace_bytes=BLAS_WORKSPACE_BYTES if device == "cuda" else 0,
        activations_alone_bytes=ledger.peak_activations_bytes,
    )


@contextlib.contextmanager
def _gradients_known(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """A gradient is one from the moment that it is accumulated into a parameter."""

    def accumulated(parameter: Tensor) -> None:
        ledger.assign(Kind.GRADIENT, [parameter.grad])

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(accumulated) for p in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The storages alive on one type of device, and the most that they ever came to. Works on real tensors, too."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[Kind] = Counter()
        self.peak_bytes = 0
        """Without optimizer state, which is always there."""
        self.peak_activations_bytes = 0
        self._device_type = device_type
        self._granularity = ALLOCATION_BYTES if device_type == "cuda" else 1
        self._entries: dict[int, _Entry] = {}
        self._paused = False
        self._patches = contextlib.ExitStack()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor makes operations on its local tensor of it, and those are counted
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.prim.device.default:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.device.type == self._device_type:
                    self._entry(leaf.untyped_storage())
            self._look(_workspace_bytes(func, args) if self._device_type == "cuda" else 0)
        return result

    def assign(self, kind: Kind, tensors: Iterable[object]) -> None:
        """These tensors are of that kind from now on. Anything that is no tensor on the device is passed over."""
        for tensor in tensors:
            local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
            if isinstance(local, Tensor) and local.device.type == self._device_type:
                entry = self._entry(local.untyped_storage())
                self.bytes[entry.kind] -= entry.bytes
                self.bytes[kind] += entry.bytes
                entry.kind = kind
        self._look()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the account, but look for no peak inside."""
        self._paused = True
        yield
        self._paused = False

    def __enter__(self) -> Self:
        ledger, resize = self, UntypedStorage.resize_

        def resize_(storage: UntypedStorage, size: int) -> UntypedStorage:
            resize(storage, size)
            ledger._resized(storage)
            return storage

        self._patches.enter_context(mock.patch.object(UntypedStorage, "resize_", resize_))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    def _resized(self, storage: UntypedStorage) -> None:
        """FSDP empties the storage of weights that it has no use for, and fills it again."""
        if (entry := self._entries.get(storage._cdata)) is not None:
            self.bytes[entry.kind] -= entry.bytes
            entry.bytes = self._rounded(storage.nbytes())
            self.bytes[entry.kind] += entry.bytes
            self._look()

    def _rounded(self, num_bytes: int) -> int:
        return math.ceil(num_bytes / self._granularity) * self._granularity

    def _look(self, workspace_bytes: int = 0) -> None:
        if self._paused:
            return
        activations = self.bytes[Kind.ACTIVATION] + workspace_bytes
        self.peak_activations_bytes = max(self.peak_activations_bytes, activations)
        total = activations + self.bytes[Kind.PARAMETER] + self.bytes[Kind.GRADIENT]
        self.peak_bytes = max(self.peak_bytes, total)

    def _entry(self, storage: UntypedStorage) -> _Entry:
        key = storage._cdata
        if key not in self._entries:
            rounded = self._rounded(storage.nbytes())

            def freed(_: object) -> None:
                entry = self._entries.pop(key)
                self.bytes[entry.kind] -= entry.bytes

            self._entries[key] = _Entry(kind=Kind.ACTIVATION, bytes=rounded, storage=weakref.ref(storage, freed))
            self.bytes[Kind.ACTIVATION] += rounded
        return self._entries[key]


@dataclass(kw_only=True, slots=True)
class _Entry:
    kind: Kind
    bytes: int
    storage: weakref.ref[UntypedStorage]


def _workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """What a kernel allocates for itself: attention sums the query's gradient in float32 when the query is smaller.

    ``dq_accum`` and ``softmax_d`` in flash_attn/flash_api.cpp, ``delta`` and ``gQ_accum`` in mem_eff_attention.
    """
    if func not in _ATTENTION_BACKWARD:
        return 0
    query: Tensor = args[1]
    batch, heads, tokens, features = query.shape
    rows = batch * heads * math.ceil(tokens / 128) * 128
    sums = rows * math.ceil(features / 32) * 32 * 4 if query.dtype != torch.float32 else 0
    return sums + rows * 4


_ATTENTION_BACKWARD = {
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default,
}
