"""Makes the engines of a process, one for each kind of file."""

from collections.abc import Mapping
from pathlib import Path

from serve_app.engines.base import Engine
from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ModelFormat


def create_engines(
    device: str, threads: int, *, prepared_dir: Path | None = None
) -> Mapping[ModelFormat, Engine]:
    """Return an engine for each format on `device` ("cpu" or "cuda:n").

    threads: cores that ONNX Runtime uses per call; torch's are set by the EngineThread
    prepared_dir: where folded weights are kept, so that known checkpoints open in milliseconds
    """
    return {
        ModelFormat.PT: TorchEngine(device, prepared_dir=prepared_dir),
        ModelFormat.ONNX: OnnxEngine(device, threads),
    }
