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
import sys
import types
from collections.abc import Container, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn

Plain = Any
"""What JSON can hold."""

_INTERNALS = set(nn.Module().__dict__) - {"training"}
_STORES = ("_parameters", "_buffers")
_CLASSES = ("torch.nn.modules.", "torch.nn.parameter.", "ultralytics.nn.")
_FUNCTION_MODULES = ("torch.nn.functional", "torch._C._nn")
_TRANSFORMS = "torchvision.transforms.transforms."
_OBJECTS: Mapping[str, frozenset[str]] = {
    f"{_TRANSFORMS}Compose": frozenset({"transforms"}),
    f"{_TRANSFORMS}Resize": frozenset(
        {"training", "size", "max_size", "interpolation", "antialias"}
    ),
    f"{_TRANSFORMS}CenterCrop": frozenset({"training", "size"}),
    f"{_TRANSFORMS}ToTensor": frozenset(),
    f"{_TRANSFORMS}Normalize": frozenset({"training", "mean", "std", "inplace"}),
}
"""What a classifier's transforms are made of, and the attributes of each."""
_ENUMS = frozenset({"torchvision.transforms.functional.InterpolationMode"})
_MAX_INTEGER_BITS = 63


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
    return hashlib.sha256(_text(structure).encode()).hexdigest()[:16]


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
        same = describe(rebuilt) == structure
    except (IndescribableError, MemoryError):
        raise
    except Exception as error:
        raise IndescribableError(f"no structure: {type(error).__name__}: {error}") from None
    if not same:
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
        made = _decode(data, None)
        same = _text(_encode(made, None)) == _text(data)
    except (IndescribableError, MemoryError):
        raise
    except Exception as error:
        raise IndescribableError(f"no object: {type(error).__name__}") from None
    if not same:
        raise IndescribableError("the object cannot be made with the libraries of today")
    return made


def _text(data: Plain) -> str:
    """Return the one text of these data, in which 1, 1.0 and True differ."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


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
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and value.bit_length() <= _MAX_INTEGER_BITS:
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
    if owner is not None and _is_function(value):
        return {"$function": _name_of(_checked_function(value))}
    return _encode_object(value)


def _encode_object(value: Any) -> Plain:
    kind = _name_of(type(value))
    if isinstance(value, Enum):
        return {"$enum": [_known(kind, _ENUMS), value.name]}
    _known(kind, _OBJECTS)
    kept = value.__dict__.keys() - (_INTERNALS if isinstance(value, nn.Module) else set())
    _check_attributes(kind, kept)
    return {"$object": [kind, {name: _encode(value.__dict__[name], None) for name in sorted(kept)}]}


def _check_attributes(kind: str, names: Iterable[str]) -> None:
    """Refuse other objects, and attributes that such an object does not have: hooks, methods."""
    foreign = set(names) - _OBJECTS[_known(kind, _OBJECTS)]
    if foreign:
        raise IndescribableError(f"{kind} has an attribute of no known kind")


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


def _decode_function(name: str, owner: nn.Module | None) -> Any:
    function = _find(name)
    if owner is None or not _is_function(function):
        raise IndescribableError(f"{name} is of no known kind")
    if _name_of(_checked_function(function)) != name:
        raise IndescribableError(f"{name} is a function of another module")
    return function


def _decode_enum(content: Plain, _owner: nn.Module | None) -> Any:
    kind: Any = _import(_known(content[0], _ENUMS))
    return kind[content[1]]


def _decode_object(content: Plain, _owner: nn.Module | None) -> Any:
    name, attributes = content
    _check_attributes(name, attributes)
    kind: Any = _import(name)
    made = kind.__new__(kind)
    if isinstance(made, nn.Module):
        nn.Module.__init__(made)
    made.__dict__.update({name: _decode(item, None) for name, item in attributes.items()})
    return made


_DECODERS: Mapping[str, Any] = {
    "$float": lambda text, _owner: float(text),
    "$tuple": lambda items, owner: tuple(_decode(item, owner) for item in items),
    "$size": lambda items, _owner: torch.Size(items),
    "$dict": _decode_dict,
    "$dtype": lambda name, _owner: _dtype(name),
    "$tensor": _decode_tensor,
    "$method": _decode_method,
    "$function": _decode_function,
    "$enum": _decode_enum,
    "$object": _decode_object,
}


def _sequence_name(value: list[Any] | tuple[Any, ...]) -> str:
    names = {tuple: "tuple", torch.Size: "size"}
    if type(value) not in names:
        raise IndescribableError(f"a {type(value).__name__} is of no known kind")
    return names[type(value)]


def _is_function(value: object) -> bool:
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType)


def _checked_function(function: Any) -> Any:
    """Return a function that was defined where networks find theirs, not merely imported there."""
    home = function.__module__ or ""
    if home not in _FUNCTION_MODULES and not home.startswith("ultralytics.nn."):
        raise IndescribableError(f"{home}.{function.__qualname__} is of no known kind")
    return function


def _name_of(value: Any) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    found = _import(name) if name in _OBJECTS or name in _ENUMS else _find(name)
    if found is not value:
        raise IndescribableError(f"{name} is of no known kind")
    return name


def _known(name: str, names: Container[str]) -> str:
    if name not in names:
        raise IndescribableError(f"{name} is of no known kind")
    return name


def _look_up(name: str, allowed: tuple[str, ...]) -> Any:
    if not name.startswith(allowed):
        raise IndescribableError(f"{name} is of no known kind")
    return _find(name)


def _find(name: str) -> Any:
    """Return what a loaded module holds; data have nothing imported, for that runs code."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _import(name: str) -> Any:
    """Return one of the few objects that are known by name, whose module may not be loaded yet."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise IndescribableError(f"{name} is no type of numbers")
    return dtype
