"""Looks into an `.onnx` graph before ONNX Runtime does, which would run parts of it at once.

ONNX Runtime computes whatever does not depend on the picture when it opens a file, and a loop runs
for as long as the file says. Exports of Ultralytics loop nowhere, and compute little in advance.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import shape_inference

from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError

_MAX_PRECOMPUTED = 2**23  # numbers, of up to 8 bytes; exports have a tenth of a million
_MAX_ELEMENTS = 2**28  # 1 GiB in fp32
_MAX_EXPANSION = 8  # small integers take a byte each in some forms
_SMALL_BYTES = 1024  # what holds a shape
_MAX_RANK = 8
_BYTES_PER_NUMBER = 8
_NEVER_GROWING = {
    *("Cast", "Cos", "Exp", "Flatten", "Identity", "Neg", "Reciprocal", "Reshape", "Sigmoid"),
    *("Sin", "Slice", "Sqrt", "Squeeze", "Transpose", "Unsqueeze"),
}
_IN_THE_FILE = {"Constant", "Identity"}  # no copies: ONNX Runtime removes such nodes
_BROADCASTING = {"Add", "Div", "Equal", "MatMul", "Mul", "Pow", "Sub", "Where"}


def inspect_graph(path: Path) -> int:
    """Check the graph without running it; return the bytes of the numbers that it holds.

    Raises:
        ModelBrokenError: it is malformed, loops, keeps weights elsewhere or computes far too much
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        _check_form(model)
        held_bytes = sum(map(_tensor_bytes, _tensors(model.graph)))
        if held_bytes > _MAX_EXPANSION * path.stat().st_size:
            raise ModelBrokenError("the ONNX file declares more weights than it holds")
        return held_bytes + _check_sizes(model.graph, _infer_sizes(model)) * _BYTES_PER_NUMBER
    except (DecodeError, shape_inference.InferenceError, ValueError, TypeError, LookupError):
        raise ModelBrokenError(
            "the ONNX file is truncated, corrupt or uses unknown operators; export it again"
        ) from None


def _check_form(model: Any) -> None:
    if model.functions:
        raise ModelBrokenError("the ONNX file defines functions, which no export of YOLO does")
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelBrokenError(
                f"the ONNX file uses {printable(node.op_type)}, which could run for ever and is in "
                "no export of YOLO"
            )
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    sparse = any(each.HasField("sparse_tensor") or each.sparse_tensors for each in attributes)
    if sparse or model.graph.sparse_initializer:
        raise ModelBrokenError("the ONNX file holds sparse weights, which no export of YOLO does")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ModelBrokenError(
            "the ONNX file keeps its weights in other files; export it as one file"
        )


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all tensors that the file holds."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors


def _tensor_bytes(tensor: Any) -> int:
    if not tensor.dims:
        return 0
    itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return itemsize * abs(math.prod(map(int, tensor.dims)))


def _infer_sizes(model: Any) -> dict[str, int]:
    """Return how many numbers each value has, where that does not depend on the input's size."""
    graph = model.graph
    for tensor in graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")  # shapes do not depend on weights
    del graph.value_info[:]  # what the file says of itself
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    shapes = _infer_shapes(model)
    # ONNX itself would follow shapes that are computed, but make all numbers of a value for that.
    small = _small_values(graph, shapes)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in small:
            value = small[node.input[0]]
            node.input[0] = f"{node.output[0]}.shape"
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.input[0]))
    return {name: math.prod(shape) for name, shape in _infer_shapes(model).items()}


def _small_values(graph: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the shapes that the graph computes, by the operators that exports use for that."""
    small = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _small(graph.initializer)
    }
    for node in graph.node:
        inputs = [small[name] for name in node.input if name in small]
        value: Any = None
        if node.op_type == "Constant":
            for tensor in _small(attribute.t for attribute in node.attribute):
                value = onnx.numpy_helper.to_array(tensor)
        elif node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            value = np.array(shapes[node.input[0]], dtype=np.int64)
        elif node.op_type == "ConstantOfShape" and inputs and _is_rank(inputs[0]):
            of = [onnx.numpy_helper.to_array(attribute.t) for attribute in node.attribute]
            value = np.full(inputs[0], of[0].item() if of else 0)
        elif node.op_type == "Sub" and len(inputs) == 2:
            value = inputs[0] - inputs[1]
        elif node.op_type == "Gather" and len(inputs) == 2 and inputs[0].ndim == 1:
            value = inputs[0][inputs[1]]
        if value is not None and value.nbytes <= _SMALL_BYTES:
            small[node.output[0]] = value
    return small


def _is_rank(shape: Any) -> bool:
    return bool(shape.shape == (1,) and 0 <= shape[0] <= _MAX_RANK)


def _small(tensors: Iterable[Any]) -> Iterator[Any]:
    return (tensor for tensor in tensors if 0 < len(tensor.raw_data) <= _SMALL_BYTES)


def _infer_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    graph = shape_inference.infer_shapes(model).graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim)
        if known and tensor.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _check_sizes(graph: Any, sizes: dict[str, int]) -> int:
    """Return how many numbers are computed when opening; refuse too many, there or later."""
    held = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    sizes = held | sizes
    small = _small_values(graph, {})
    constants = {"", *held}
    defined = constants | {value.name for value in graph.input}
    precomputed = 0
    for node in graph.node:
        if not defined.issuperset(node.input):
            raise ValueError("the nodes are in no order")
        defined.update(node.output)
        if _is_constant(node, constants, sizes):
            constants.update(node.output)
            for name in filter(None, node.output):
                if name not in sizes:
                    sizes[name] = _most(node, sizes, small)
                if node.op_type not in _IN_THE_FILE:
                    precomputed += sizes[name]
            if precomputed > _MAX_PRECOMPUTED:
                raise _refusal(node)
        elif any(sizes.get(name, 0) > _MAX_ELEMENTS for name in node.output):
            raise _refusal(node)
    return precomputed


def _is_constant(node: Any, constants: set[str], sizes: dict[str, int]) -> bool:
    """Whether a node's outputs do not depend on the picture's pixels, nor on a free input size."""
    if node.op_type in {"Shape", "Size"}:
        return constants.union(sizes).issuperset(node.input)
    return constants.issuperset(node.input)


def _most(node: Any, sizes: dict[str, int], small: dict[str, Any]) -> int:
    """Return how many numbers a node can make at most, where ONNX does not tell the shape."""
    inputs = [sizes[name] for name in node.input if name]
    if node.op_type in _NEVER_GROWING:
        return inputs[0]
    if node.op_type in _BROADCASTING:
        return math.prod(inputs)
    if node.op_type == "Concat":
        return sum(inputs)
    if node.op_type in {"Expand", "Tile"} and node.input[1] in small:
        return inputs[0] * math.prod(abs(int(side)) for side in small[node.input[1]].flat)
    raise _refusal(node)


def _refusal(node: Any) -> ModelBrokenError:
    return ModelBrokenError(
        f"the ONNX file makes far more numbers by {printable(node.op_type)} than any export of YOLO"
    )
