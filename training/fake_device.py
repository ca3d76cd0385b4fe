"""A CUDA device that is not there: tensors with shapes and lifetimes but no data, on any build of torch.

Inside `fake_device` every new tensor is on ``cuda:0``, costs nothing, and meets what it would meet on a GPU: autocast
with its cache of casted weights, fused dropout, flash or memory-efficient attention, the autograd engine. Nothing is
computed and no driver is touched. Tensors made inside must not be used outside.

torch's FakeTensorMode gives the tensors; what it lacks without a GPU is supplied here:

- The autograd engine asks for the current stream of whatever is on an accelerator, and autocast takes a tensor only
  when it says that it is CUDA's or XLA's. So C++ is told ``xla:0``, which is no accelerator to the engine, and Python
  ``cuda:0``.
- A device's guard (its notion of "current device") is compiled in with the device. Where CUDA's or XLA's is missing,
  the one of the meta device, which does nothing, stands in.
- Composite operations that choose a kernel by looking at the device are given the GPU's choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from training.errors import TrainingError

CUDA, XLA = torch.device("cuda", 0), torch.device("xla", 0)
HALF = (torch.float16, torch.bfloat16)

aten = torch.ops.aten


@contextlib.contextmanager
def fake_device(device_type: Literal["cuda", "cpu"]) -> Iterator[None]:
    """New tensors are on a device that is not there. Raises TrainingError where this torch cannot pretend."""
    with contextlib.ExitStack() as stack:
        fake_mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True))
        if device_type == "cpu":
            stack.enter_context(_NoData(fake_mode))
        else:
            # In a thread of its own, the engine would look for a stream of the device.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
            stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
            stack.enter_context(mock.patch("torch.cuda.get_rng_state"))
            stack.enter_context(mock.patch("torch.cuda.set_rng_state"))
            stack.enter_context(
                mock.patch.object(DTensor, "device", property(lambda tensor: tensor._local_tensor.device))
            )
            stack.enter_context(_device_guards())
            stack.enter_context(_kernels_of_cuda())
            stack.enter_context(CUDA)
            stack.enter_context(_NoDataOnCuda(fake_mode))
        yield


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Without its storage, which Tensor's own would read and write, where there is no memory."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    memo[id(tensor)] = copied
    return copied


# Devices as c10/core/DeviceType.h numbers them, and where c10/core/impl/DeviceGuardImplInterface.h keeps their guards.
_CUDA, _XLA, _META = 1, 9, 14
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_REGISTER = "_ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE"


@contextlib.contextmanager
def _device_guards() -> Iterator[None]:
    """The meta device's guard, which does nothing, for XLA and CUDA where they have none."""
    try:
        c10 = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
        guards = (ctypes.c_void_p * (_META + 1)).in_dll(c10, _REGISTRY)
        register = getattr(c10, _REGISTER)
    except (AttributeError, OSError, StopIteration, ValueError) as error:
        raise TrainingError(f"torch {torch.__version__} cannot stand in for a GPU: {error}") from error
    register.argtypes, register.restype = [ctypes.c_int8, ctypes.c_void_p], None
    missing = [device for device in (_CUDA, _XLA) if not guards[device]]
    for device in missing:
        register(device, guards[_META])
    try:
        yield
    finally:
        for device in missing:
            register(device, None)


class _NoData(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What no data changes: nothing is written, and a value that is asked for is any value."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = fake_mode.fake_tensor_converter.meta_converter.tensor_memo

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _returns_nothing(func):
            return None
        if _works_in_place(func):
            return args[0]
        if func is aten._local_scalar_dense.default:
            return _any_value(args[0].dtype)
        if func is aten._pin_memory.default:
            return aten.alias.default(args[0])
        result = func(*args, **(kwargs or {}))
        self._seen.clear()  # a tensor that is remembered cannot move, and Module.to would fail
        return result


class _NoDataOnCuda(_NoData):  # type: ignore[no-untyped-call]
    """Answers C++ when it asks for a tensor's device, and corrects what it then does with the answer."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return XLA
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and device.type in ("xla", "meta"):  # a tensor's own, or a device without index
            kwargs["device"] = device = CUDA
        if func is aten._to_copy.default and device == CUDA and _is_already_there(args[0], kwargs):
            return aten.alias.default(args[0])
        return super().__torch_dispatch__(func, types, args, kwargs)


@functools.cache
def _returns_nothing(func: Any) -> bool:
    """Whether `func` only writes to lists of tensors, as fused optimizers do (SGD's is not known to FakeTensorMode)."""
    return not func._schema.returns and func._schema.name.endswith("_")


@functools.cache
def _works_in_place(func: Any) -> bool:
    """Whether `func` writes to its first argument and returns it, of the same shape."""
    schema = func._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    returned = schema.returns[0].alias_info if len(schema.returns) == 1 else None
    writes = first is not None and first.is_write and returned is not None and returned.is_write
    return writes and schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags


def _is_already_there(tensor: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether ``to`` would have returned the tensor itself, had C++ known its device."""
    other_layout = kwargs.get("memory_format") not in (None, torch.preserve_format)
    return tensor.device == CUDA and kwargs.get("dtype") in (None, tensor.dtype) and not other_layout


def _any_value(dtype: torch.dtype) -> bool | int | float:
    """What ``item`` returns, where there is no value. A mask that is not all true is the usual case, and the larger."""
    return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


@contextlib.contextmanager
def _kernels_of_cuda() -> Iterator[None]:
    """Composite operations as they are on a GPU since Ampere (sm80), below autocast and above autograd."""
    replaced = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, kernel in (
        ("linear", _linear),
        ("dropout", _dropout),
        ("scaled_dot_product_attention", _attention),
    ):
        replaced.impl(name, kernel, "AutogradCUDA")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        replaced._destroy()  # type: ignore[no-untyped-call]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One product of matrices that adds the bias; XLA would get a product and then an addition (ATen's Linear.cpp)."""
    rows = input.reshape(-1, input.shape[-1])
    product = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    return product if input.ndim == 2 else product.view(*input.shape[:-1], weight.shape[0])


def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """One kernel and a mask of one byte per element (``is_fused_kernel_acceptable`` in ATen's Dropout.cpp)."""
    if not train or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _attention(  # noqa: PLR0913  the signature of ATen's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Shapes (batch, heads, tokens, features). Chosen and prepared as in ATen's sdp_utils.cpp and attention.cpp.

    Where torch prefers cuDNN's kernel (sm90, half precision), that one keeps for backward what the chosen one keeps.
    """
    features = query.shape[-1]
    scale = features**-0.5 if scale is None else scale
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if attn_mask is None and query.dtype in HALF and features <= 256 and value.shape[-1] == features:
        padded = [_pad_last(tensor, 8) for tensor in (query, key, value)]
        return aten._scaled_dot_product_flash_attention(*padded, **options)[0][..., :features]  # type: ignore[no-any-return]
    if query.dtype is torch.float64 or features % (8 if query.dtype in HALF else 4):
        math = aten._scaled_dot_product_attention_math
        return math(query, key, value, attn_mask, **options, enable_gqa=enable_gqa)[0]  # type: ignore[no-any-return]
    mask = None if attn_mask is None else _additive(attn_mask, query, key)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, mask, needs_grad, **options)[0]  # type: ignore[no-any-return]


def _pad_last(tensor: Tensor, multiple: int) -> Tensor:
    missing = -tensor.shape[-1] % multiple
    return functional.pad(tensor, (0, missing)) if missing else tensor


def _additive(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask in the query's type, its rows aligned to 16 elements, expanded to (batch, heads, queries, keys)."""
    if mask.dtype is torch.bool:
        mask = torch.where(mask, query.new_zeros(()), query.new_full((), -torch.inf))
    return _pad_last(mask, 16)[..., : key.shape[2]].expand(*query.shape[:3], key.shape[2])
