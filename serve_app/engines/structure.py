"""A module's structure as plain data: all that steers its forward pass, without its weights.

The data serve twice. Their hash is the signature by which models find that they share a graph; and
a skeleton is rebuilt from them without any pickle, so that a prepared model needs no checkpoint.
What cannot be said in plain data makes a structure indescribable: it is then never shared and never
prepared, rather than shared or rebuilt wrongly.
"""

import hashlib
import importlib
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn

Plain = Any
"""What JSON can hold."""

_INTERNALS = set(nn.Module().__dict__) - {"training"}
_STORES = ("_parameters", "_buffers")
_CLASSES = ("torch.nn.modules.", "torch.nn.parameter.", "ultralytics.nn.")
_FUNCTIONS = ("torch.nn.functional.", "torch._C._nn.", "ultralytics.nn.")
_OBJECTS = ("torchvision.transforms.",)


class IndescribableError(ValueError):
    """A structure holds something that plain data cannot say, or data do not describe one."""


def describe(module: nn.Module) -> Plain:
    """Return the structure of `module` and everything in it, the same in every process.

    Raises:
        IndescribableError: it holds something of an unknown kind
    """
    modules = list(module.modules())
    numbers = {id(sub): number for number, sub in enumerate(modules)}
    return [_describe_one(sub, numbers) for sub in modules]


def signature_of(structure: Plain) -> str:
    """Return the hash by which equal structures are known."""
    text = json.dumps(structure, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rebuild(structure: Plain) -> nn.Module:
    """Return a module of this structure, its tensors on the meta device.

    Only classes and functions of torch and Ultralytics are ever looked up, and none is called.

    Raises:
        IndescribableError: the data describe no such module
    """
    try:
        modules = [_make(part) for part in structure]
        for module, part in zip(modules, structure, strict=True):
            _fill(module, part, modules)
        rebuilt = modules[0]
    except IndescribableError:
        raise
    except Exception as error:
        raise IndescribableError(f"no structure: {type(error).__name__}: {error}") from None
    if describe(rebuilt) != structure:
        raise IndescribableError("the structure cannot be rebuilt with the libraries of today")
    return rebuilt


def encode_object(value: object) -> Plain:
    """Return a small object, such as a picture's transforms, as plain data.

    Raises:
        IndescribableError: it is of an unknown kind
    """
    return _encode(value, None)


def decode_object(data: Plain) -> Any:
    """Return what `encode_object` was given.

    Raises:
        IndescribableError: the data say nothing known
    """
    try:
        return _decode(data, None)
    except IndescribableError:
        raise
    except Exception as error:
        raise IndescribableError(f"no object: {type(error).__name__}") from None


def _describe_one(module: nn.Module, numbers: Mapping[int, int]) -> Plain:
    if any(getattr(module, name) for name in _INTERNALS if name.endswith("_hooks")):
        raise IndescribableError("a module has hooks")
    attributes = module.__dict__
    return {
        "class": _name_of(type(module)),
        "attributes": {
            name: _encode(attributes[name], module)
            for name in sorted(attributes.keys() - _INTERNALS)
        },
        **{store: _describe_tensors(getattr(module, store)) for store in _STORES},
        "children": {
            name: None if child is None else numbers[id(child)]
            for name, child in module._modules.items()
        },
    }


def _describe_tensors(store: Mapping[str, torch.Tensor | None]) -> Plain:
    return {
        name: None if tensor is None else [list(tensor.shape), _dtype_name(tensor.dtype)]
        for name, tensor in store.items()
    }


def _make(part: Plain) -> nn.Module:
    kind = _look_up(part["class"], _CLASSES)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise IndescribableError(f"{part['class']} is no module")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _fill(module: nn.Module, part: Plain, modules: list[nn.Module]) -> None:
    for name, number in part["children"].items():
        module._modules[name] = None if number is None else modules[number]
    for store in _STORES:
        for name, described in part[store].items():
            getattr(module, store)[name] = _blank(described, store)
    for name, data in part["attributes"].items():
        module.__dict__[name] = _decode(data, module)


def _blank(described: Plain, store: str) -> torch.Tensor | None:
    if described is None:
        return None
    shape, dtype = described
    blank = torch.empty(shape, dtype=_dtype(dtype), device="meta")
    return nn.Parameter(blank, requires_grad=False) if store == "_parameters" else blank


def _encode(value: Any, owner: nn.Module | None) -> Plain:
    """Encode one attribute of `owner`. A dict with one key that begins with "$" is no plain one."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list | tuple):
        items = [_encode(item, owner) for item in value]
        return items if type(value) is list else {f"${_sequence_name(value)}": items}
    if type(value) is dict:
        pairs = [[_encode(key, owner), _encode(item, owner)] for key, item in value.items()]
        return {"$dict": pairs}
    if isinstance(value, torch.dtype):
        return {"$dtype": _dtype_name(value)}
    if isinstance(value, torch.Tensor) and not value.is_meta:
        plain = [list(value.shape), _dtype_name(value.dtype), value.tolist()]
        return {"$tensor": plain}
    if isinstance(value, types.MethodType) and value.__self__ is owner:
        return {"$method": value.__func__.__name__}
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return {"$function": _name_of(value)}
    return _encode_object(value)


def _encode_object(value: Any) -> Plain:
    kind = _name_of(type(value))
    if not kind.startswith(_OBJECTS):
        raise IndescribableError(f"{kind} is of no known kind")
    if isinstance(value, Enum):
        return {"$enum": [kind, value.name]}
    kept = value.__dict__.keys() - (_INTERNALS if isinstance(value, nn.Module) else set())
    return {"$object": [kind, {name: _encode(value.__dict__[name], None) for name in sorted(kept)}]}


def _decode(data: Plain, owner: nn.Module | None) -> Any:
    if isinstance(data, list):
        return [_decode(item, owner) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    return _DECODERS[kind](content, owner)


def _decode_dict(pairs: Plain, owner: nn.Module | None) -> Any:
    return {_decode(key, owner): _decode(item, owner) for key, item in pairs}


def _decode_tensor(content: Plain, _owner: nn.Module | None) -> torch.Tensor:
    shape, dtype, values = content
    return torch.tensor(values, dtype=_dtype(dtype), device="cpu").reshape(shape)


def _decode_method(name: str, owner: nn.Module | None) -> Any:
    method = getattr(type(owner), name)
    return types.MethodType(method, owner)


def _decode_enum(content: Plain, _owner: nn.Module | None) -> Any:
    kind: Any = _look_up(content[0], _OBJECTS)
    return kind[content[1]]


def _decode_object(content: Plain, _owner: nn.Module | None) -> Any:
    kind: Any = _look_up(content[0], _OBJECTS)
    made = kind.__new__(kind)
    if isinstance(made, nn.Module):
        nn.Module.__init__(made)
    made.__dict__.update({name: _decode(item, None) for name, item in content[1].items()})
    return made


_DECODERS: Mapping[str, Any] = {
    "$float": lambda text, _owner: float(text),
    "$tuple": lambda items, owner: tuple(_decode(item, owner) for item in items),
    "$size": lambda items, _owner: torch.Size(items),
    "$dict": _decode_dict,
    "$dtype": lambda name, _owner: _dtype(name),
    "$tensor": _decode_tensor,
    "$method": _decode_method,
    "$function": lambda name, _owner: _look_up(name, _FUNCTIONS),
    "$enum": _decode_enum,
    "$object": _decode_object,
}


def _sequence_name(value: list[Any] | tuple[Any, ...]) -> str:
    names = {tuple: "tuple", torch.Size: "size"}
    if type(value) not in names:
        raise IndescribableError(f"a {type(value).__name__} is of no known kind")
    return names[type(value)]


def _name_of(value: Any) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if _find(name) is not value:
        raise IndescribableError(f"{name} is of no known kind")
    return name


def _look_up(name: str, allowed: tuple[str, ...]) -> Any:
    if not name.startswith(allowed):
        raise IndescribableError(f"{name} is of no known kind")
    return _find(name)


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise IndescribableError(f"{name} is no type of numbers")
    return dtype
