"""Whose fault a failure is: the file's, or a lack of memory."""

import errno

import pytest
import torch

from serve_app.engines.guard import guarded
from serve_app.errors import ModelBrokenError, OverloadedError, ServeAppError


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
        (OSError(errno.EIO, "Input/output error"), ModelBrokenError),
        (RuntimeError("shape mismatch"), ModelBrokenError),
        (ValueError("not enough memory"), ModelBrokenError),
    ],
)
def test_failures_are_told_apart(error: Exception, expected: type[ServeAppError]) -> None:
    """Only a lack of memory is worth asking again."""
    with pytest.raises(expected):
        guarded(fail, error)
