"""Opens `.onnx` exports and `.pt` checkpoints with OpenVINO: an engine of its own for each model.

In fp32 it is faster than PyTorch and ONNX Runtime, but a compiled model holds several times its
weights and takes long to compile. So compiled models are kept: what is left is to import them.
"""

import io
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serve_app.engines.base import Description
from serve_app.engines.compiled import (
    Compiled,
    CompiledError,
    CompiledUnreadableError,
    compiled_name,
    read_compiled,
    write_compiled,
)
from serve_app.engines.files import KnownFiles, content_hash
from serve_app.engines.guard import is_blameless
from serve_app.engines.memory import release_free_memory, resident_bytes
from serve_app.engines.openvino_files import READABLE, read_graph
from serve_app.engines.openvino_model import OpenVinoModel
from serve_app.engines.openvino_runtime import openvino
from serve_app.engines.store import ArtifactStore
from serve_app.engines.structure import IndescribableError
from serve_app.errors import ModelBrokenError
from serve_app.types import Footprint, ModelFormat

logger = logging.getLogger(__name__)

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
# Weights are laid out once more for the processor; a pass keeps what it computes.
_WEIGHT_FACTOR = 1.5
_BYTES_PER_PIXEL = 150
# Kernels kept for input sizes seen before. By OpenVINO's own limit, ten sizes took 77 MB more.
_KERNELS = 256


class OpenVinoEngine:
    """Opens files of one format on the CPU."""

    def __init__(
        self,
        model_format: ModelFormat,
        *,
        threads: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        store: ArtifactStore | None = None,
    ) -> None:
        """Run on `threads` cores.

        Args:
            model_format: the kind of files
            threads: cores that all passes together use
            precision: numbers to compute with; in bf16 boxes are decoded in it too, and move
            store: where compiled models are kept; None compiles each time
        """
        self._format = model_format
        self._precision = precision
        self._store = store
        self._core: Any = openvino.Core()
        self._config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Passes of one model follow each other on all cores: a stream of its own for each
            # would take all memory once more, and leave cores idle when one caller is alone.
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            # Pinned threads of several models and processes would meet on the first cores.
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS,
        }
        self._inspected: KnownFiles[tuple[Description, int]] = KnownFiles()
        self._names: KnownFiles[str] = KnownFiles()

    def verify(self, path: Path) -> Footprint:
        """Check the file without running it and estimate its footprint (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        return Footprint(self._inspect(path)[1])

    def open(self, path: Path) -> OpenVinoModel:
        """Import the compiled model, or compile it, without a forward pass (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        release_free_memory()  # a model in memory freed before would seem to take none
        before = resident_bytes()
        return self._open_prepared(path, before) or self._open_plainly(path, before)

    def is_prepared(self, path: Path) -> bool:
        """Whether `open` will find a compiled model (loader thread)."""
        return self._store is not None and self._store.find(self._name(path)) is not None

    def prepare(self, path: Path) -> bool:
        """Keep the compiled model; return whether that made any (process of its own).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        if self._store is None or self.is_prepared(path):
            return False
        name = self._name(path)
        description, own_bytes = self._inspect(path)
        blob = np.frombuffer(self._compile(path).export_model().getbuffer(), np.uint8)
        compiled = Compiled(description=description, own_bytes=own_bytes, blob=blob)
        if self._name(path) != name:
            logger.info("%s was replaced while it was compiled: nothing of it is kept", path)
            return False
        try:
            made = self._store.put(name, lambda partial: write_compiled(partial, compiled))
        except IndescribableError as error:
            logger.info("%s will be compiled each time: %s", path, error)
            return False
        return made is not None

    def _inspect(self, path: Path) -> tuple[Description, int]:
        """Return the description and the estimated bytes in memory."""
        return self._inspected.get(path, self._inspect_anew)

    def _inspect_anew(self, path: Path) -> tuple[Description, int]:
        compiled = self._read_prepared(path)
        if compiled is not None:
            return compiled.description, compiled.own_bytes
        description, weight_bytes = READABLE[self._format].inspect(path)
        height, width = description.info.imgsz
        return description, int(weight_bytes * _WEIGHT_FACTOR) + _BYTES_PER_PIXEL * height * width

    def _open_plainly(self, path: Path, resident_before: int) -> OpenVinoModel:
        description, own_bytes = self._inspect(path)
        network = self._compile(path)
        return OpenVinoModel(description, network, own_bytes, resident_before, was_prepared=False)

    def parked(self) -> tuple[Path, ...]:
        """Return nothing: what leaves the device is gone (any thread)."""
        return ()

    def _open_prepared(self, path: Path, resident_before: int) -> OpenVinoModel | None:
        compiled = self._read_prepared(path)
        if compiled is None:
            return None
        try:
            blob = io.BytesIO(compiled.blob.data)
            network = self._core.import_model(blob, _DEVICE, self._config)
        except RuntimeError as error:  # made by another version, or for another processor
            if is_blameless(error):
                raise
            self._refuse(path, error)
            return None
        return OpenVinoModel(
            compiled.description, network, compiled.own_bytes, resident_before, was_prepared=True
        )

    def _compile(self, path: Path) -> Any:
        graph = read_graph(self._format, path)
        try:
            return self._core.compile_model(graph, _DEVICE, self._config)
        except RuntimeError as error:
            if is_blameless(error):
                raise
            logger.info("graph refused", exc_info=error)
            raise ModelBrokenError(
                "the model uses operators that OpenVINO does not know; export it again"
            ) from None

    # --- compiled models ------------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        """Return the name of what is compiled for this processor; threads are set on import."""
        processor = self._core.get_property(_DEVICE, "FULL_DEVICE_NAME")
        content = self._names.get(path, content_hash)
        return compiled_name(
            content, "openvino", openvino.__version__, processor, self._format, self._precision
        )

    def _read_prepared(self, path: Path) -> Compiled | None:
        found = self._store and self._store.find(self._name(path))
        try:
            return read_compiled(found) if found else None
        except CompiledUnreadableError as error:
            logger.info("the compiled model of %s is not used: %s", path, error)
            return None
        except CompiledError as error:
            self._refuse(path, error)
            return None

    def _refuse(self, path: Path, error: Exception) -> None:
        """Throw a compiled model away that cannot be used: it is made anew."""
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        logger.warning("the compiled model of %s is refused: %s", path, reason[0])
        if self._store is not None:
            self._store.discard(self._name(path))
