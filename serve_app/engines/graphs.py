"""Models of one structure share one graph: a module without weights, run with any of theirs.

A graph is known by its signature, a hash of everything in the module that steers its forward pass
except the weights themselves (structure.py). A structure that cannot be described gets a signature
of its own, so one can be shared too seldom, never wrongly.
"""

import copy
import threading
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from serve_app.engines.precision import dtype_for, fine_tensors, refine_head
from serve_app.engines.profile import BatchProfile
from serve_app.engines.slots import Run, SlottedRunner
from serve_app.engines.structure import IndescribableError, describe, signature_of
from serve_app.engines.traces import TracedRunner
from serve_app.engines.weights import Layout, Weights

_ROOT_ATTRIBUTES = {"training", "save", "inplace", "stride", "kpt_shape"}
_MODULE_INTERNALS = set(nn.Module().__dict__) - {"training"}


class Graph:
    """A structure that any number of models with equal signatures run through.

    dtype: the numbers that it computes with, but for the parts that need fp32
    """

    def __init__(
        self,
        skeleton: nn.Module,
        signature: str,
        dtype: torch.dtype,
        make_runner: "MakeRunner | None" = None,
    ) -> None:
        """Take over `skeleton`, a module on the meta device.

        `make_runner` makes what runs models over a slot; without it they run where they lie.
        """
        self._make_runner = make_runner
        self._runner: SlottedRunner | None = None
        self._traced = TracedRunner(_weakly(self.run))
        self.signature = signature
        self.dtype = dtype_for(skeleton, dtype)
        self.fine = fine_tensors(skeleton)
        self.profiles: dict[tuple[int, int], BatchProfile] = {}  # by (height, width) in pixels
        if self.dtype != torch.float32:
            refine_head(skeleton)
        self._lock = threading.Lock()
        self.skeleton = skeleton  # never run: a copy of one that runs would keep its weights
        self._idle: list[_Skeleton] = []
        weakref.finalize(self, _dismantle_all, skeleton, self._idle)

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the numbers that the tensor of this name is kept in."""
        return torch.float32 if name in self.fine else self.dtype

    @property
    def slot_bytes(self) -> int:
        """Device memory of the slot and what was recorded over it."""
        return 0 if self._runner is None else self._runner.nbytes

    def forward(self, weights: Weights, pixels: torch.Tensor) -> Any:
        """Return the raw output for `pixels` (batch, 3, height, width) of one model.

        With slots, one thread at a time.
        """
        if self._make_runner is None:
            on_cpu = pixels.device.type == "cpu"
            return (self._traced if on_cpu else self.run)(weights.tensors, pixels)
        if self._runner is None:
            self._runner = self._make_runner(
                _weakly(self.run), weights.layout, weights.block.device
            )
        return self._runner(weights, pixels)

    def run(self, tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> Any:
        """Return the raw output for `pixels` (batch, 3, height, width), with these weights.

        Several threads may run it at once.
        """
        with self._skeleton_alone() as skeleton, skeleton.holding(tensors):
            raw = skeleton.module(pixels.to(self.dtype))
        return _in_fp32(_without_maps(raw))

    def get_ready(self) -> None:
        """Have a skeleton to run, so that the first pass does not have to make one."""
        with self._skeleton_alone():
            pass

    @contextmanager
    def _skeleton_alone(self) -> Iterator["_Skeleton"]:
        """Lend a skeleton: it keeps weights and grids while it runs, so one thread at a time."""
        with self._lock:
            skeleton = self._idle.pop() if self._idle else _Skeleton(copy.deepcopy(self.skeleton))
        try:
            yield skeleton
        finally:
            with self._lock:
                self._idle.append(skeleton)


MakeRunner = Callable[[Run, Layout, torch.device], SlottedRunner]
"""What makes a graph's runner: a pass, the layout of its weights, the device."""


class _Skeleton:
    """A module without weights, and the places where they go.

    What `torch.func.functional_call` does, with the places looked up once instead of in each call,
    where that takes a tenth of the time of a small model's pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._places = [
            (f"{prefix}.{name}" if prefix else name, store, name, blank)
            for prefix, sub in module.named_modules()
            for store in (sub._parameters, sub._buffers)
            for name, blank in store.items()
            if blank is not None
        ]

    @contextmanager
    def holding(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Hold these weights inside the block."""
        try:
            for path, store, name, _ in self._places:
                store[name] = tensors[path]
            yield
        finally:
            for _, store, name, blank in self._places:
                store[name] = blank


def _weakly(run: Run) -> Run:
    """Return `run`, a graph's method, without keeping the graph alive."""
    method: Any = weakref.WeakMethod(run)

    def call(tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> Any:
        return method()(tensors, pixels)

    return call


def _without_maps(raw: Any) -> Any:
    """Drop what training would want of a head, so that it is freed before postprocessing."""
    trailing = isinstance(raw, tuple) and not isinstance(raw[-1], torch.Tensor)
    return raw[0] if trailing else raw


def _in_fp32(raw: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, raw)


class GraphPool:
    """The graphs in use, and the few that were used last.

    A graph that no model holds takes no more than its modules, a megabyte or two; building it again
    takes longer than reading a model's weights.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        make_runner: MakeRunner | None = None,
        keep: int = 4,
    ) -> None:
        """Let graphs compute with `dtype` wherever they can; keep the last `keep` alive.

        With slots none is kept: those take the device's memory.
        """
        self._dtype = dtype
        self._make_runner = make_runner
        self._graphs: WeakValueDictionary[str, Graph] = WeakValueDictionary()
        self._last: deque[Graph] = deque(maxlen=keep if make_runner is None else 0)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, signature: str) -> Graph | None:
        """Return the graph of this signature, if there is one."""
        return self._graphs.get(signature)

    def get(self, signature: str, make: Callable[[], nn.Module]) -> Graph:
        """Return the graph of this signature, of the skeleton that `make` returns if there is none.

        Whatever `make` raises is passed on.
        """
        with self._lock:
            graph = self._graphs.get(signature)
            if graph is None:
                graph = self._graphs[signature] = Graph(
                    make(), signature, self._dtype, self._make_runner
                )
            if graph in self._last:
                self._last.remove(graph)
            self._last.append(graph)
            return graph

    def adopt(self, skeleton: nn.Module) -> Graph:
        """Return the graph of this structure, made of `skeleton` when there is none yet."""
        graph = self.get(sign(skeleton), lambda: skeleton)
        if graph.skeleton is not skeleton:
            dismantle(skeleton)
        return graph


def sign(skeleton: nn.Module) -> str:
    """Return the signature of a module's structure, stable between processes if describable."""
    try:
        return signature_of(describe(skeleton))
    except IndescribableError:
        return uuid.uuid4().hex[:16]


def _dismantle_all(pristine: nn.Module, copies: list[_Skeleton]) -> None:
    for module in (pristine, *(skeleton.module for skeleton in copies)):
        dismantle(module)


def take_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Make `module` a skeleton: return its tensors by name and leave meta tensors in their place.

    One by one rather than with `.to("meta")`, by which Ultralytics also moves `Detect.stride`.
    """
    taken: dict[str, torch.Tensor] = {}
    detached: dict[int, torch.Tensor] = {}  # tied parameters stay one tensor
    for prefix, sub in module.named_modules():
        for store in (sub._parameters, sub._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                key = f"{prefix}.{name}" if prefix else name
                taken[key] = detached.setdefault(id(tensor), tensor.detach())
                meta = torch.empty_like(tensor, device="meta", requires_grad=False)
                is_parameter = store is sub._parameters
                store[name] = nn.Parameter(meta, requires_grad=False) if is_parameter else meta
    for name in module.__dict__.keys() - _ROOT_ATTRIBUTES - _MODULE_INTERNALS:
        if not isinstance(module.__dict__[name], types.MethodType):
            del module.__dict__[name]  # names, training arguments: the model's own, not the graph's
    return taken


def dismantle(module: nn.Module) -> None:
    """Break the cycles that fusing leaves (`m.forward = m.forward_fuse`), so that it dies now."""
    for sub in list(module.modules()):
        for name, value in list(sub.__dict__.items()):
            if isinstance(value, types.MethodType):
                del sub.__dict__[name]


def move_plain_tensors(module: nn.Module, device: torch.device) -> None:
    """Move tensors that are plain attributes, such as `Detect.stride`, to `device`."""
    for sub in module.modules():
        for name, value in sub.__dict__.items():
            if isinstance(value, torch.Tensor):
                sub.__dict__[name] = value.to(device)
