"""Turns model files into OpenVINO's models: `.onnx` as they are, `.pt` by tracing them.

A trace is made for any input size and any batch, since pictures are letterboxed to rectangles of
their own, as Ultralytics does for checkpoints. A fixed square would be 7 % faster, but compute a
third more for a 4:3 picture, and answer otherwise.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.modules.head import Classify, Detect, RTDETRDecoder

from serve_app.engines.archive import check_records
from serve_app.engines.base import Description
from serve_app.engines.checkpoint import read_model, read_structure
from serve_app.engines.guard import is_blameless
from serve_app.engines.memory import release_free_memory
from serve_app.engines.onnx_graph import inspect_graph
from serve_app.engines.onnx_metadata import read_metadata
from serve_app.engines.openvino_runtime import openvino
from serve_app.errors import ModelBrokenError
from serve_app.types import ModelFormat

logger = logging.getLogger(__name__)

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Readable:
    """One kind of file as OpenVINO is given it.

    inspect: checks a file without running it -> its description and the bytes of its weights
    read: makes OpenVINO's model of a file that was inspected
    """

    inspect: Callable[[Path], tuple[Description, int]]
    read: Callable[[Path], Any]


def _inspect_onnx(path: Path) -> tuple[Description, int]:
    description = read_metadata(path)
    held_bytes = max(inspect_graph(path), path.stat().st_size)
    release_free_memory()
    return description, held_bytes


def _read_onnx(path: Path) -> Any:
    return openvino.Core().read_model(path)


def _inspect_checkpoint(path: Path) -> tuple[Description, int]:
    checkpoint = read_structure(path)
    check_records(path)
    module = checkpoint.module
    numbers = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
    return checkpoint.description, numbers * _FP32_BYTES


def _read_checkpoint(path: Path) -> Any:
    """Trace the fused fp32 module: nothing of the file is run but its network."""
    checkpoint = read_model(path)
    module = checkpoint.module
    _prepare_for_tracing(module)
    example = torch.zeros(1, 3, *checkpoint.description.info.imgsz)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it looks at
        trace: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            module, example, strict=False, check_trace=False
        )
        model = openvino.convert_model(trace, example_input=example)
    model.reshape({0: openvino.PartialShape([-1, 3, -1, -1])})
    return model


def _prepare_for_tracing(module: torch.nn.Module) -> None:
    """Let the heads give out answers only, on grids that are computed for each input size."""
    for head in module.modules():
        if isinstance(head, Detect | RTDETRDecoder | Classify):
            head.__dict__.update(export=True, format="openvino")
        if isinstance(head, Detect | RTDETRDecoder):
            head.__dict__["dynamic"] = True
        if isinstance(head, Detect):
            head.__dict__["_grouped_topk"] = _topk


def _topk(numbers: torch.Tensor, k: int, _groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the best, however few there are: a plain `min` would be traced as a constant."""
    most: Any = torch._shape_as_tensor(numbers)[1].clamp(max=k)
    values, index = numbers.topk(most, dim=1)
    return values, index


READABLE: Mapping[ModelFormat, Readable] = {
    ModelFormat.ONNX: Readable(_inspect_onnx, _read_onnx),
    ModelFormat.PT: Readable(_inspect_checkpoint, _read_checkpoint),
}


def read_graph(model_format: ModelFormat, path: Path) -> Any:
    """Return OpenVINO's model of a file that was inspected.

    Raises:
        ModelBrokenError: OpenVINO does not understand it
    """
    try:
        return READABLE[model_format].read(path)
    except ModelBrokenError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, tracing whatever a network raises
        if is_blameless(error):
            raise
        logger.info("graph refused", exc_info=error)
        raise ModelBrokenError(
            f"the model cannot be converted for OpenVINO ({type(error).__name__}); "
            "export it again with a current Ultralytics"
        ) from None
