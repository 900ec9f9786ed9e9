"""Stands in for CUDA graphs on any device.

A tape records operators with their tensors and repeats them without running any Python of the
model, and it holds what a pass reads as weakly as a CUDA graph does: a replay fails where a graph
would read memory that was given back.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators of one pass; repeats them on the same tensors."""

    def __init__(self) -> None:
        untyped: Any = super()
        untyped.__init__()
        self._made: dict[int, torch.Tensor] = {}
        self._steps: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and keep it, with weak references to what was there before."""
        loose = tree_map_only(torch.Tensor, self._loosen, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._made.setdefault(id(tensor), tensor)
        self._steps.append((func, loose, result))
        return result

    def _loosen(self, tensor: torch.Tensor) -> Any:
        return tensor if id(tensor) in self._made else weakref.ref(tensor)

    def replay(self) -> None:
        """Repeat everything, into the same memory."""
        with torch.inference_mode():
            for func, loose, result in self._steps:
                args, kwargs = tree_map(_fasten, loose)
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _fasten(value: Any) -> Any:
    if isinstance(value, weakref.ref):
        tensor = value()
        assert tensor is not None, "a replay reads memory that was given back"
        return tensor
    return value


class TapeCapture:
    """Captures with a tape, after one warm-up pass; counts what it did."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self.open: weakref.WeakSet[Tape] = weakref.WeakSet()

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Warm up, record."""
        run()
        tape = Tape()
        with tape:
            outputs = run()
        self.captures += 1
        self.open.add(tape)

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, outputs
