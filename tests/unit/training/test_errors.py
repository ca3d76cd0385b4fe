"""What a caught exception is called."""

from __future__ import annotations

import errno
import os
import signal

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
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FailureKind.OOM),
        (RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "), FailureKind.SIGNAL),
        (RuntimeError("DataLoader worker (pid(s) 71) exited unexpectedly"), FailureKind.USER_CODE),
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


def test_what_was_raised_because_of_a_want_of_memory_is_that() -> None:
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert classify(wrapped) is FailureKind.OOM
    wrapped.__cause__ = ConfigError([])
    assert classify(wrapped) is FailureKind.USER_CODE


def test_a_loader_s_process_that_was_killed_is_a_signal() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(torch.utils.data.DataLoader(Killed(), num_workers=1))
    assert classify(caught.value) is FailureKind.SIGNAL


class Killed(torch.utils.data.Dataset[int]):
    """Whose loader is killed, as for want of memory."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index
