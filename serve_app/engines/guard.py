"""Turns whatever a weird file makes an engine raise into errors that clients are told."""

import errno
import functools
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from serve_app.errors import (
    DeviceFailedError,
    ModelBrokenError,
    OverloadedError,
    ServeAppError,
    SourceUnavailableError,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def guarded(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)`, for steps that a weird file can upset.

    Raises:
        ModelBrokenError: anything unexpected, which is logged; the file is to blame
        OverloadedError: the memory ran out, or the descriptors, or the threads
        SourceUnavailableError: the file cannot be read now
        DeviceFailedError: the device can no longer be used
    """
    return blaming(_blame_model, functools.partial(function, *args, **kwargs))


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
        raise _explained(error, blame) from None


def _explained(error: Exception, blame: Callable[[Exception], ServeAppError]) -> ServeAppError:
    if is_out_of_memory(error):
        return OverloadedError("there is no memory left for this now; ask again")
    if is_device_error(error):
        logger.error("the device fails", exc_info=error)
        return DeviceFailedError(
            "the device failed while it worked on this; the replica is being replaced: ask again"
        )
    return blame(error)


def explained(error: Exception) -> ServeAppError:
    """Return what clients are told of an error in a step of a model's, as `guarded` raises it."""
    return error if isinstance(error, ServeAppError) else _explained(error, _blame_model)


def _blame_model(error: Exception) -> ServeAppError:
    code = _system_error(error)
    if code in _NOTHING_LEFT:
        logger.warning("the system has nothing left for a model", exc_info=error)
        return OverloadedError(f"the server has run out of something ({_words(code)}); ask again")
    if code in _FILE_AWAY:
        logger.warning("a model's file cannot be read", exc_info=error)
        return SourceUnavailableError(
            f"the model's file cannot be read now ({_words(code)}); ask again once its disk is back"
        )
    logger.warning("a model fails", exc_info=error)
    return ModelBrokenError(
        f"the model cannot be run ({type(error).__name__}); export it again with a current "
        "Ultralytics, and see this server's log for more"
    )


def is_blameless(error: Exception) -> bool:
    """Whether a failure says nothing of the file that was worked on.

    There was no memory, descriptor or thread left, the disk is away, or the device failed.
    """
    known = _system_error(error) in _NOTHING_LEFT | _FILE_AWAY
    return known or is_out_of_memory(error) or is_device_error(error)


def _system_error(error: Exception) -> int | None:
    """Return the number of the system's error behind this one, None if there is none.

    The runtimes, written in C++, tell it by its words or its number in theirs.
    """
    if isinstance(error, OSError):
        return error.errno
    if not _is_runtimes(error):
        return None
    text = str(error)
    for code in sorted(_NOTHING_LEFT | _FILE_AWAY):
        if _words(code) in text or text.endswith(f"system error number {code}"):
            return code
    return errno.ENOENT if "NO_SUCHFILE" in text else None


def _words(code: int) -> str:
    return os.strerror(code)


def _is_runtimes(error: Exception) -> bool:
    """Whether torch, OpenVINO or ONNX Runtime raised it; the last one's share no base class."""
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")


_NOTHING_LEFT = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN})
_FILE_AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN}
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory ran out; on the CPU, the runtimes tell so by the text alone.

    The kernel tells so with an OSError, which says nothing of the file that was to be read.
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return _is_runtimes(error) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "is smaller than requested bytes",
    "bad_alloc",
    "bad allocation",
    "can't start new thread",  # each takes a stack
    "CUDA error: out of memory",
    "CUDA failure 2: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_device_error(error: Exception) -> bool:
    """Whether the device itself failed, which no later call in this process survives.

    CUDA reports such an error with every call from then on: only a new process helps. To have no
    memory left is none, nor is whatever a model makes an operator refuse.
    """
    if not _is_runtimes(error) or is_out_of_memory(error):
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
    "driver version is insufficient",
    "captur",  # what may not be recorded as a CUDA graph
)
"""CUDA errors of one call; the device goes on."""

_DEVICE_FAILED = (
    "CUDA error",
    "CUDA failure",  # ONNX Runtime's
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "device-side assert",
)
