"""Measures memory: the process's own, and what a forward pass needs at its peak."""

import ctypes
import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PROCESS = psutil.Process()


def resident_bytes() -> int:
    """Return this process's resident set."""
    return int(_PROCESS.memory_info().rss)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None
    return trim


def release_free_memory() -> None:
    """Ask the C library to hand freed memory back to the system; it keeps it otherwise."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


def plausible_growth(resident_before: int, estimate: int) -> int:
    """Return the bytes that the process grew by, as far as that can be one model's doing.

    Other threads grow the process too, and memory that they freed may serve a part of the model:
    what is less than half the estimate or more than twice it counts as just that.
    """
    release_free_memory()
    growth = resident_bytes() - resident_before
    return min(max(growth, estimate // 2), 2 * estimate)


class ActivationPeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operators' results hold at once; also works on the meta device.

    `known` are the tensors that exist beforehand: weights and input are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: set[int] = set()
        self._bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._live:
            return
        self._live.add(key)
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._live.discard(key)
        self._bytes -= nbytes
