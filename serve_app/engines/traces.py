"""Runs a graph as a recorded program on the CPU, without Python between its operators.

Python launches some six hundred operators for one pass of a small network, and takes the
interpreter's lock for each: streams, decoders and the event loop wait for one another. A traced
pass takes it once. Weights are inputs of the program, so one program serves all models of a graph.

A trace knows one shape, and takes several passes to make: so a shape is traced once it has proved
to be in use. It is kept only if it gives, for the picture at hand, exactly what the graph gives; it
was made with noise, so whatever depended on values would show.
"""

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from serve_app.engines.slots import Run

logger = logging.getLogger(__name__)

_USES_BEFORE = 4
_MAX_PROGRAMS = 16
_REMEMBERED_SHAPES = 256
_TRACING = threading.Lock()
"""Tracing has global state in torch: one trace at a time in a process."""

_Shape = tuple[int, ...]


class TracedRunner:
    """Runs one graph for any of its models; any number of threads at once."""

    def __init__(
        self, run: Run, *, uses_before: int = _USES_BEFORE, max_programs: int = _MAX_PROGRAMS
    ) -> None:
        """Trace `run` for shapes used `uses_before` times, `max_programs` of them at most."""
        self._run = run
        self._uses_before = uses_before
        self._max_programs = max_programs
        self._lock = threading.Lock()
        self._names: tuple[str, ...] = ()
        self._programs: OrderedDict[_Shape, Any] = OrderedDict()  # last used last
        self._uses: OrderedDict[_Shape, int] = OrderedDict()
        self._gave_up = False

    def __repr__(self) -> str:
        return f"<TracedRunner: {len(self._programs)} shapes traced>"

    def __call__(self, tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> Any:
        """Return the raw output for `pixels` (batch, 3, height, width), with these weights."""
        shape = tuple(pixels.shape)
        program = self._program_for(shape)
        if program is not None:
            with _plainly():
                return program(pixels, *[tensors[name] for name in self._names])
        output = self._run(tensors, pixels)
        if self._is_due(shape) and _TRACING.acquire(blocking=False):
            try:
                self._trace(tensors, pixels, output)
            finally:
                _TRACING.release()
        return output

    def _program_for(self, shape: _Shape) -> Any:
        with self._lock:
            program = self._programs.get(shape)
            if program is not None:
                self._programs.move_to_end(shape)
            return program

    def _is_due(self, shape: _Shape) -> bool:
        """Count a use; whether it is time to trace this shape."""
        with self._lock:
            uses = self._uses[shape] = self._uses.pop(shape, 0) + 1
            if len(self._uses) > _REMEMBERED_SHAPES:
                self._uses.popitem(last=False)
            known = shape in self._programs
            return not self._gave_up and not known and uses % self._uses_before == 0

    def _trace(self, tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor, fine: Any) -> None:
        names = tuple(sorted(tensors))
        values = [tensors[name] for name in names]

        def call(noise: torch.Tensor, *values: torch.Tensor) -> Any:
            return self._run(dict(zip(names, values, strict=True)), noise)

        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # of each number that depends on the shape
                noise = torch.rand(pixels.shape, dtype=pixels.dtype)
                program: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                    call, (noise, *values), check_trace=False, strict=False
                )
            with _plainly():
                same = _equal(program(pixels, *values), fine)
        except Exception as error:
            logger.info("a graph is not traced: %s", error)
            same = False
        with self._lock:
            if not same:
                self._gave_up = True
                return
            self._names = names
            self._programs[tuple(pixels.shape)] = program
            if len(self._programs) > self._max_programs:
                self._programs.popitem(last=False)


def _plainly() -> AbstractContextManager[None]:
    """Run a program as it was traced: torch would spend two passes on finding what to fuse."""
    jit: Any = torch.jit
    context: AbstractContextManager[None] = jit.optimized_execution(False)
    return context


def _equal(ours: Any, fine: Any) -> bool:
    ours, fine = tree_leaves(ours), tree_leaves(fine)
    return len(ours) == len(fine) and all(
        isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and _same(one, other)
        for one, other in zip(ours, fine, strict=True)
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(
        torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
    )
