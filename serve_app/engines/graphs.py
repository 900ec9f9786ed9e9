"""Models of one structure share one graph: a module without weights, run with any of theirs.

A graph is known by its signature, a hash of everything in the module that steers its forward pass
except the weights themselves. What the hash does not understand makes a signature unique, so a
structure can be shared too seldom, never wrongly.
"""

import hashlib
import threading
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.func import functional_call

_ROOT_ATTRIBUTES = {"training", "save", "inplace", "stride", "kpt_shape"}
_MODULE_INTERNALS = set(nn.Module().__dict__) - {"training"}


class Graph:
    """A structure that any number of models with equal signatures run through.

    It keeps grids of the last image's size on its head, so only one thread may run it.
    """

    def __init__(self, skeleton: nn.Module, signature: str) -> None:
        self._skeleton = skeleton
        self.signature = signature
        self.warmed: set[tuple[int, int]] = set()  # (height, width) in pixels

    def run(self, tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> Any:
        """Return the raw output for `pixels` (1, 3, height, width), with these weights."""
        return functional_call(self._skeleton, dict(tensors), (pixels,), tie_weights=False)


class GraphPool:
    """The graphs in use; each lives as long as some model holds it."""

    def __init__(self) -> None:
        self._graphs: WeakValueDictionary[str, Graph] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def adopt(self, skeleton: nn.Module) -> Graph:
        """Return the graph of this structure, made of `skeleton` when there is none yet."""
        signature = sign(skeleton)
        with self._lock:
            graph = self._graphs.get(signature)
            if graph is None:
                graph = self._graphs[signature] = Graph(skeleton, signature)
                weakref.finalize(graph, dismantle, skeleton)
            else:
                dismantle(skeleton)
            return graph


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


def sign(module: nn.Module) -> str:
    """Return the signature of a module's structure, stable between processes."""
    digest = hashlib.sha256()
    for line in _describe(module):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _describe(module: nn.Module) -> Iterator[str]:
    for path, sub in module.named_modules(remove_duplicate=False):
        kind = type(sub)
        yield f"{path}:{kind.__module__}.{kind.__qualname__}"
        for tensors in (sub._parameters, sub._buffers):
            for name, tensor in tensors.items():
                yield f"{name}={None if tensor is None else (tuple(tensor.shape), tensor.dtype)}"
        for name in sorted(sub.__dict__.keys() - _MODULE_INTERNALS):
            yield f"{name}={_text(sub.__dict__[name])}"


def _text(value: object) -> str:
    """Return a text that is equal only for values with the same effect."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, torch.Size | tuple | list):
        return f"{type(value).__name__}({','.join(map(_text, value))})"
    if isinstance(value, dict):
        return f"dict({','.join(f'{_text(k)}:{_text(v)}' for k, v in value.items())})"
    if isinstance(value, torch.Tensor) and not value.is_meta:
        return f"tensor({tuple(value.shape)},{value.dtype},{value.tolist()})"
    if isinstance(value, types.MethodType):
        return f"method({_text(value.__func__)})"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return f"unknown({uuid.uuid4()})"
