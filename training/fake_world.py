"""The other ranks of a job, none of which is there: collectives return at once, with tensors of the right shapes.

Inside `fake_world` (and ``fake_device``), FSDP2 shards a model over any number of GPUs in one process that has none, so
that the memory of one rank can be traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from training.errors import TrainingError


@contextlib.contextmanager
def fake_world(world_size: int) -> Iterator[None]:
    """This process is rank 0 of `world_size`. Enter it before ``fake_device``; give ``fully_shard`` a mesh of ``cuda``.

    Raises TrainingError in a rank of a real job.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    if dist.is_initialized():
        raise TrainingError("a rank of a job cannot pretend to be one of another; plan in a process of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        with contextlib.ExitStack() as stack:
            for name, stand_in in _STREAMLESS.items():
                stack.enter_context(mock.patch(f"torch.cuda.{name}", stand_in))
            stack.enter_context(mock.patch("torch.cuda.device_count", return_value=world_size))
            stack.enter_context(mock.patch("torch.accelerator.current_stream"))
            stack.enter_context(mock.patch.object(DeviceMesh, "__init__", _with_data(DeviceMesh.__init__)))
            yield
    finally:
        dist.destroy_process_group()


_STREAMLESS: dict[str, Any] = {
    "current_device": mock.Mock(return_value=0),
    "is_initialized": mock.Mock(return_value=True),
    "set_device": mock.Mock(),
    "current_stream": mock.MagicMock(),
    "Stream": mock.MagicMock(),
    "Event": mock.MagicMock(),
    "stream": mock.MagicMock(),
}
"""What FSDP asks of the device, for a device where everything happens in order."""


def _with_data(function: Any) -> Any:
    """`function` on real tensors: a mesh finds its rank by looking for it among the ranks, which are all, in order."""

    def ranks(value: Any) -> Any:
        return torch.arange(value.numel()).view(value.shape) if isinstance(value, FakeTensor) else value

    def with_data(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch.device("cpu"):
            return function(*map(ranks, args), **{name: ranks(value) for name, value in kwargs.items()})

    return with_data
