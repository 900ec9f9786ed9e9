"""Makes the engines of a process, one for each kind of file."""

from collections.abc import Mapping
from typing import Literal

from serve_app.engines.base import Engine
from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.precision import Precision
from serve_app.engines.store import ArtifactStore
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ModelFormat

CpuEngine = Literal["auto", "openvino"]


def create_engines(
    device: str,
    *,
    threads: int,
    streams: int,
    precision: Precision = "auto",
    cpu_engine: CpuEngine = "auto",
    store: ArtifactStore | None = None,
    parked_bytes: int = 0,
) -> Mapping[ModelFormat, Engine]:
    """Return an engine for each format on `device` ("cpu" or "cuda:n").

    Args:
        device: where models run
        threads: cores that all passes together use
        streams: passes that run at once
        precision: numbers that models compute with
        cpu_engine: what runs them on a CPU; see docs/adr/0007-which-engine-when.md
        store: where prepared weights are kept; None opens every model plainly
        parked_bytes: host memory for weights of models that left a GPU

    Raises:
        ValueError: the device cannot do what is asked for
    """
    if device == "cpu" and cpu_engine == "openvino":
        # Imported here: only who asks for it pays for its libraries.
        from serve_app.engines.openvino_engine import OpenVinoEngine

        if precision == "fp16":
            raise ValueError("precision fp16 needs a GPU; write auto, bf16 or fp32 for a CPU")
        numbers: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
        return {
            kind: OpenVinoEngine(kind, threads=threads, precision=numbers, store=store)
            for kind in ModelFormat
        }
    return {
        ModelFormat.PT: TorchEngine(
            device,
            precision=precision,
            streams=streams,
            store=store,
            arena_bytes=0 if device == "cpu" else parked_bytes,
        ),
        ModelFormat.ONNX: OnnxEngine(device, max(1, threads // streams)),
    }
