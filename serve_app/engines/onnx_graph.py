"""Looks into an `.onnx` graph before ONNX Runtime does, which would run parts of it at once.

ONNX Runtime computes whatever does not depend on the picture when it opens a file, and a loop runs
for as long as the file says. Exports of Ultralytics loop nowhere and compute few numbers in advance.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import shape_inference

from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError

_MAX_PRECOMPUTED = 2**23  # numbers, of up to 8 bytes
_MAX_ELEMENTS = 2**28  # 1 GiB in fp32
_MAX_EXPANSION = 8  # small integers take a byte each in some forms
_SMALL_BYTES = 1024  # what holds a shape
_BYTES_PER_NUMBER = 8
_GRAPH_ATTRIBUTES = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
_SPARSE_ATTRIBUTES = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}


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
    except (DecodeError, shape_inference.InferenceError, ValueError, TypeError, KeyError):
        raise ModelBrokenError(
            "the ONNX file is truncated, corrupt or uses unknown operators; export it again"
        ) from None


def _check_form(model: Any) -> None:
    if model.functions:
        raise ModelBrokenError("the ONNX file defines functions, which no export of YOLO does")
    for node in model.graph.node:
        if any(attribute.type in _GRAPH_ATTRIBUTES for attribute in node.attribute):
            raise ModelBrokenError(
                f"the ONNX file uses {printable(node.op_type)}, which could run for ever and is in "
                "no export of YOLO"
            )
    sparse = any(a.type in _SPARSE_ATTRIBUTES for node in model.graph.node for a in node.attribute)
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
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return abs(math.prod(tensor.dims)) * int(itemsize)


def _infer_sizes(model: Any) -> dict[str, int]:
    """Return how many numbers each value has, where that does not depend on the input's size."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")  # shapes do not depend on weights
    del model.graph.value_info[:]  # what the file says of itself
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value.type.tensor_type.shape
        known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in shape.dim)
        if known and value.type.tensor_type.HasField("shape"):
            sizes[value.name] = math.prod(dim.dim_value for dim in shape.dim)
    return sizes


def _check_sizes(graph: Any, sizes: dict[str, int]) -> int:
    """Return how many numbers are computed when opening; refuse too many, there or later."""
    constants = {"", *(tensor.name for tensor in graph.initializer)}
    defined = constants | {value.name for value in graph.input}
    precomputed = 0
    for node in graph.node:
        if not defined.issuperset(node.input):
            raise ValueError("the nodes are in no order")
        defined.update(node.output)
        # None: its size would have to be computed first.
        made = [sizes.get(name) for name in node.output if name]
        if _is_constant(node, constants, sizes):
            constants.update(node.output)
            unknown = None in made
            if node.op_type != "Constant":  # which is in the file
                precomputed += sum(size or 0 for size in made)
            if unknown or precomputed > _MAX_PRECOMPUTED:
                raise _refusal(node)
        elif max((size or 0 for size in made), default=0) > _MAX_ELEMENTS:
            raise _refusal(node)
    return precomputed


def _is_constant(node: Any, constants: set[str], sizes: dict[str, int]) -> bool:
    """Whether a node's outputs do not depend on the picture's pixels, nor on a free input size."""
    if node.op_type in {"Shape", "Size"}:
        return constants.union(sizes).issuperset(node.input)
    return constants.issuperset(node.input)


def _refusal(node: Any) -> ModelBrokenError:
    return ModelBrokenError(
        f"the ONNX file makes far more numbers than any export of YOLO, by {printable(node.op_type)}"
    )
