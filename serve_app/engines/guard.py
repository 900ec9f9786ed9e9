"""Turns whatever a weird file makes an engine raise into errors that clients are told."""

import errno
import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from serve_app.errors import (
    DeviceFailedError,
    ModelBrokenError,
    OverloadedError,
    ServeAppError,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def guarded(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)`, for steps that a weird file can upset.

    Raises:
        ModelBrokenError: anything unexpected, which is logged; the file is to blame
        OverloadedError: the memory ran out
        DeviceFailedError: the device can no longer be used
    """
    return blaming(_broken_model, functools.partial(function, *args, **kwargs))


def blaming(blame: Callable[[Exception], ServeAppError], function: Callable[[], T]) -> T:
    """Return `function()`, anything unexpected that it raises turned into what `blame` returns.

    Raises:
        ServeAppError: what `function` or `blame` says
        OverloadedError: the memory ran out
        DeviceFailedError: the device can no longer be used
    """
    try:
        return function()
    except ServeAppError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OverloadedError("there is no memory left for this now; ask again") from None
        if is_device_error(error):
            logger.error("the device fails", exc_info=error)
            raise DeviceFailedError(
                "the device failed while it worked on this; the replica is being replaced: ask "
                "again"
            ) from None
        raise blame(error) from None


def _broken_model(error: Exception) -> ServeAppError:
    logger.warning("a model fails", exc_info=error)
    return ModelBrokenError(
        f"the model cannot be run ({type(error).__name__}); export it again with a current "
        "Ultralytics, and see this server's log for more"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory ran out; on the CPU, torch tells so by the text alone.

    The kernel tells so with an OSError, which says nothing of the file that was to be read.
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_device_error(error: Exception) -> bool:
    """Whether the device itself failed, which no later call in this process survives.

    CUDA reports such an error with every call from then on: only a new process helps. To have no
    memory left is none, nor is whatever a model makes an operator refuse.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = str(error)
    if any(words in text for words in _CALL_REFUSED):
        return False
    failed = any(words in text for words in _DEVICE_FAILED)
    return failed or isinstance(error, torch.AcceleratorError)


_CALL_REFUSED = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available",
    "captur",  # what may not be recorded as a CUDA graph
)
"""CUDA errors of one call; the device goes on."""

_DEVICE_FAILED = (
    "CUDA error",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "device-side assert",
)
