"""What a caught exception is called."""

from __future__ import annotations

import errno

import pytest
import torch

from training.errors import ConfigError, DataError, FailureKind, classify


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError([]), FailureKind.CONFIG),
        (DataError("a column is missing"), FailureKind.DATA),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), FailureKind.OOM),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), FailureKind.OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), FailureKind.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureKind.OOM),
        (MemoryError(), FailureKind.OOM),
        (torch.distributed.DistBackendError("ncclSystemError: out of memory"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), FailureKind.INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "No space left on device"), FailureKind.DISK_FULL),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"),
            FailureKind.SHM_FULL,
        ),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"),
            FailureKind.SHM_FULL,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureKind.USER_CODE),
        (ValueError("the words CUDA error: out of memory, of somebody else"), FailureKind.USER_CODE),
    ],
)
def test_a_failure_is_called_by_its_cause(error: BaseException, kind: FailureKind) -> None:
    assert classify(error) is kind
