"""Makes the engines of a process, one for each kind of file."""

from collections.abc import Mapping

from serve_app.engines.base import Engine
from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ModelFormat


def create_engines(device: str, threads: int) -> Mapping[ModelFormat, Engine]:
    """Return an engine for each format on `device` ("cpu" or "cuda:n").

    threads: cores that ONNX Runtime uses per call; torch's are set by the EngineThread
    """
    return {ModelFormat.PT: TorchEngine(device), ModelFormat.ONNX: OnnxEngine(device, threads)}
