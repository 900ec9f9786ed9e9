"""Whose fault a failure is: the file's, or a lack of memory."""

import errno

import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from serve_app.engines.guard import guarded
from serve_app.errors import (
    DeviceFailedError,
    ModelBrokenError,
    OverloadedError,
    ServeAppError,
    SourceUnavailableError,
)


def take_all_memory() -> object:
    """Ask torch for a petabyte."""
    return torch.empty(2**50, dtype=torch.uint8)


def fail(error: Exception) -> None:
    """Raise what is handed in."""
    raise error


def test_torch_without_memory_on_the_cpu_is_overload() -> None:
    """It raises a plain RuntimeError then."""
    with pytest.raises(OverloadedError):
        guarded(take_all_memory)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), OverloadedError),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), OverloadedError),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), OverloadedError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OverloadedError),
        (OSError(errno.EMFILE, "Too many open files"), OverloadedError),
        (OSError(errno.EIO, "Input/output error"), SourceUnavailableError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), SourceUnavailableError),
        (OSError(errno.EINVAL, "Invalid argument"), ModelBrokenError),
        (OSError("broken data stream"), ModelBrokenError),
        (RuntimeError("can't start new thread"), OverloadedError),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), OverloadedError),
        (RuntimeError("errno 24 on fopen: Too many open files, file path: x"), OverloadedError),
        (RuntimeError("unable to open file <x>: Stale file handle (116)"), SourceUnavailableError),
        (RuntimeError("bad allocation"), OverloadedError),
        (ort.RuntimeException("Failed to allocate memory for requested buffer"), OverloadedError),
        (ort.Fail("Load model from x failed:system error number 24"), OverloadedError),
        (
            ort.NoSuchFile("[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model"),
            SourceUnavailableError,
        ),
        (ort.Fail("Non-zero status code returned while running Conv"), ModelBrokenError),
        (ort.Fail("CUDA failure 2: out of memory"), OverloadedError),
        (ort.Fail("CUDA failure 700: an illegal memory access was encountered"), DeviceFailedError),
        (RuntimeError("shape mismatch"), ModelBrokenError),
        (ValueError("not enough memory"), ModelBrokenError),
        (ValueError("CUDA error: a class is called so"), ModelBrokenError),
        (torch.AcceleratorError("CUDA error: out of memory"), OverloadedError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), OverloadedError),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), DeviceFailedError),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error"), DeviceFailedError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFailedError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), ModelBrokenError),
        (torch.AcceleratorError("CUDA error: invalid argument"), ModelBrokenError),
        (
            RuntimeError("CUDA error: operation not permitted when stream is capturing"),
            ModelBrokenError,
        ),
    ],
)
def test_failures_are_told_apart(error: Exception, expected: type[ServeAppError]) -> None:
    """A lack of memory is worth asking again; a failed device is worth another replica."""
    with pytest.raises(expected):
        guarded(fail, error)
