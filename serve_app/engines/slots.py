"""Fixed places for weights on a device, and what runs a graph on them without launching it anew.

A slot is device memory for one model of a graph; a swap is one copy into it. Since its addresses
never change, a forward pass over it can be recorded once per input shape and replayed with
whatever weights and pictures lie there: a small network is done faster than Python can launch it.

What a recording reads must stay where it was. The weights and the input do, but heads also keep
grids of their last image's size, and drop them at the next size; so each recording holds on to
every tensor that it read and did not make itself. Warm-up passes run first, so such grids are made
outside of the recording, in memory that no replay writes to. A replay runs no Python: it neither
looks at nor changes what the head keeps, so nothing has to be put back before one.
"""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from serve_app.engines.weights import Layout, Weights

logger = logging.getLogger(__name__)

Run = Callable[[Mapping[str, torch.Tensor], torch.Tensor], Any]
"""Tensors by name, pixels (batch, 3, height, width) -> raw output: one forward pass."""

_BATCHES = (1, 2, 4, 8)
_MAX_CAPTURES = 16
_REMEMBERED_SHAPES = 64
_IDLE_CALLS = 256
"""A recording unused for so many calls gives its place to a new one. Busier ones stay: where there
are more shapes than places, recording them in turn would take longer than the passes themselves."""


class Capture(Protocol):
    """Records a pass so that it can be repeated without Python."""

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Run it a few times, record it once; return what repeats it, and its outputs.

        Each repetition reads the same addresses and overwrites the same outputs.

        Raises:
            Exception: it cannot be recorded, for whatever reason
        """


class CudaCapture:
    """Records passes as CUDA graphs, which share one pool of memory for what they compute.

    So graphs of one instance must run one after another: there is one instance to a stream.
    """

    def __init__(
        self, device: torch.device, allocating: threading.Lock, *, warm_ups: int = 3
    ) -> None:
        """Record on `device`.

        allocating: held while recording; other threads hold it while they take memory of the
            device or return it (`torch.cuda.empty_cache`), which the driver refuses meanwhile
        warm_ups: passes before each recording, in which libraries choose and load their kernels
        """
        self._device = device
        self._allocating = allocating
        self._warm_ups = warm_ups
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Warm up beside the current stream, record, and return the replay and its outputs."""
        current = torch.cuda.current_stream(self._device)
        # Entering the stream that is current anyway brings it back when a recording breaks off.
        with self._allocating, torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(self._warm_ups):
                    run()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",  # loader threads copy to the device meanwhile
            ):
                outputs = run()
        return graph.replay, outputs


class Slot:
    """Device memory for one model of a layout, at addresses that never change."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        """Claim the memory; its content is undefined until a model is put in."""
        block = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)
        self._place = Weights(layout, block)
        self._held: weakref.ref[Weights] | None = None  # weak: a slot keeps no model in memory

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The views that hold whichever model is in the slot."""
        return self._place.tensors

    @property
    def nbytes(self) -> int:
        """The bytes of device memory that it takes."""
        return self._place.block.numel()

    @torch.inference_mode()
    def hold(self, weights: Weights) -> bool:
        """Make the slot hold this model; whether that took a copy.

        The copy is queued on the current stream. Whoever frees or reuses the memory of `weights`
        waits for that stream first.

        Raises:
            ValueError: the weights belong to another graph, or are closed
        """
        if self._held is not None and self._held() is weights:
            return False
        layout = self._place.layout
        if weights.layout is not layout and weights.layout != layout:
            raise ValueError("these weights have another layout than the slot: not of this graph")
        if weights.block.numel() != layout.nbytes:
            raise ValueError("these weights are closed")
        self._held = None  # should the copy fail, nobody's weights are here
        self._place.block.copy_(weights.block, non_blocking=True)
        self._held = weakref.ref(weights)
        return True


@dataclass(slots=True, eq=False)
class _Recording:
    """A recorded pass. `kept` is what it reads besides weights and input, held for its life."""

    pixels: torch.Tensor
    replay: Callable[[], None]
    outputs: Any
    kept: Sequence[torch.Tensor]
    last_use: int


_Shape = tuple[tuple[int, ...], torch.dtype]


class SlottedRunner:
    """Runs a graph over a slot, recorded where that pays; for one stream at a time."""

    def __init__(
        self,
        run: Run,
        layout: Layout,
        device: torch.device,
        *,
        capture: Capture | None,
        batches: Sequence[int] = _BATCHES,
        max_captures: int = _MAX_CAPTURES,
    ) -> None:
        """Claim a slot on `device`.

        run: one pass; its outputs depend on nothing but the tensors and the pixels
        capture: what records passes; None runs each as it is
        batches: sizes to record; a batch is padded to the next one, a larger one runs as it is
        max_captures: shapes that may be recorded at once
        """
        self._run = run
        self._slot = Slot(layout, device)
        self._capture = capture
        self._batches = tuple(sorted(batches))
        self._max_captures = max_captures
        self._recordings: OrderedDict[_Shape, _Recording] = OrderedDict()  # last used last
        self._seen: OrderedDict[_Shape, None] = OrderedDict()
        self._calls = 0

    def __repr__(self) -> str:
        return f"<SlottedRunner: {self.nbytes} bytes, {len(self._recordings)} shapes recorded>"

    @property
    def nbytes(self) -> int:
        """Device bytes of the slot and of recorded inputs; a capture's own pool not counted."""
        recorded = self._recordings.values()
        return self._slot.nbytes + sum(r.pixels.nbytes for r in recorded)

    @torch.inference_mode()
    def __call__(self, weights: Weights, pixels: torch.Tensor) -> Any:
        """Return the raw output of this model for `pixels` (batch, 3, height, width).

        The work is queued on the current stream; the output is the caller's own.

        Raises:
            ValueError: the weights belong to another graph, or are closed
        """
        self._slot.hold(weights)
        self._calls += 1
        shape = self._shape_of(pixels)
        recording = None if shape is None else self._recording_for(shape, pixels)
        if recording is None:
            output = self._run(self._slot.tensors, pixels)
            if shape is not None:
                self._remember(shape)  # only now: a shape that fails is never recorded
            return output
        # Rows beyond the batch hold earlier pictures: computed along, and given to nobody.
        recording.pixels[: len(pixels)].copy_(pixels, non_blocking=True)
        recording.replay()
        return _take(recording.outputs, len(pixels), len(recording.pixels))

    def _shape_of(self, pixels: torch.Tensor) -> _Shape | None:
        """Return the shape that would be recorded for these; None if none would."""
        bucket = next((size for size in self._batches if size >= len(pixels)), None)
        if self._capture is None or bucket is None:
            return None
        return (bucket, *pixels.shape[1:]), pixels.dtype

    def _recording_for(self, shape: _Shape, pixels: torch.Tensor) -> _Recording | None:
        """Return the recording to replay, made now on the second use of a shape."""
        recording = self._recordings.get(shape)
        if recording is None and shape in self._seen and self._make_place():
            recording = self._record(shape, pixels)
        if recording is not None:
            recording.last_use = self._calls
            self._recordings[shape] = recording
            self._recordings.move_to_end(shape)
        return recording

    def _make_place(self) -> bool:
        if len(self._recordings) < self._max_captures:
            return True
        shape, oldest = next(iter(self._recordings.items()), (None, None))
        if shape is None or oldest is None or self._calls - oldest.last_use <= _IDLE_CALLS:
            return False
        del self._recordings[shape]
        return True

    def _record(self, shape: _Shape, pixels: torch.Tensor) -> _Recording | None:
        """Record a pass for `shape`; on failure, give up recording for good and return None."""
        assert self._capture is not None  # noqa: S101 - no shape is remembered without
        del self._seen[shape]
        static = _blank_like(pixels, shape[0][0])
        reads = _Reads()

        def run() -> Any:
            reads.forget()  # the last pass is the one recorded
            with reads:
                return self._run(self._slot.tensors, static)

        try:
            replay, outputs = self._capture(run)
        except Exception as error:
            self._capture = None
            logger.warning("passes are not recorded, so launched one by one: %s", error)
            return None
        return _Recording(static, replay, outputs, reads.kept, self._calls)

    def _remember(self, shape: _Shape) -> None:
        self._seen[shape] = None
        self._seen.move_to_end(shape)
        if len(self._seen) > _REMEMBERED_SHAPES:
            self._seen.popitem(last=False)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the tensors that operators read and that none of them made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: set[int] = set()
        self._kept: dict[int, torch.Tensor] = {}

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """One tensor of each memory block read."""
        return tuple(self._kept.values())

    def forget(self) -> None:
        """Begin anew."""
        self._made.clear()
        self._kept.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at what the operator reads, run it, and note what it made."""
        for tensor in _tensors_in((args, kwargs)):
            block = tensor.untyped_storage()._cdata
            if block not in self._made:
                self._kept.setdefault(block, tensor)
        result = func(*args, **(kwargs or {}))
        made = {tensor.untyped_storage()._cdata for tensor in _tensors_in(result)}
        self._made.update(made - self._kept.keys())  # a view of what was there is not new
        return result


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _blank_like(pixels: torch.Tensor, batch: int) -> torch.Tensor:
    """Return zeros for a batch, in the memory order of `pixels`."""
    blank = pixels.new_zeros((batch, *pixels.shape[1:]))
    plain = pixels.is_contiguous() or pixels.ndim != len("NCHW")
    return blank if plain else blank.contiguous(memory_format=torch.channels_last)


def _take(outputs: Any, batch: int, recorded: int) -> Any:
    """Copy the outputs of the first `batch` of `recorded` pictures out of a recording's memory."""

    def take(tensor: torch.Tensor) -> torch.Tensor:
        batched = tensor.ndim > 0 and tensor.shape[0] == recorded
        return (tensor[:batch] if batched else tensor).clone()

    return tree_map_only(torch.Tensor, take, outputs)
