"""Runs `.onnx` files that Ultralytics exported, with ONNX Runtime."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from serve_app.engines import predictors
from serve_app.engines.backed_model import BackedModel
from serve_app.engines.base import Description
from serve_app.engines.files import KnownFiles
from serve_app.engines.guard import is_blameless
from serve_app.engines.memory import plausible_growth, release_free_memory, resident_bytes
from serve_app.engines.onnx_graph import inspect_graph
from serve_app.engines.onnx_metadata import read_metadata
from serve_app.errors import ModelBrokenError
from serve_app.types import Footprint

logger = logging.getLogger(__name__)

# A session keeps its weights, some of them laid out once more, and its graph. What a pass needs
# is given back after it, since there is no arena.
_SESSION_BYTES = 4 * 2**20
_WEIGHT_FACTOR = 1.3
_FATAL_SEVERITY = 4


class OnnxEngine:
    """Opens `.onnx` exports on one device."""

    def __init__(self, device: str = "cpu", threads: int = 1) -> None:
        """Run on `device` ("cpu" or "cuda:n") with `threads` cores per call."""
        self._device = torch.device(device)
        self._threads = threads
        self._verified: KnownFiles[Footprint] = KnownFiles()

    def verify(self, path: Path) -> Footprint:
        """Check the file without running it and estimate its footprint (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt or no export of Ultralytics
        """
        return self._verified.get(path, _inspect)

    def open(self, path: Path) -> "OnnxModel":
        """Create the session, without a forward pass (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt or no export of Ultralytics
        """
        description = read_metadata(path)
        estimate = self.verify(path).own_bytes
        release_free_memory()  # a session in memory freed before would seem to take none
        before = resident_bytes()
        try:
            session = onnxruntime.InferenceSession(
                str(path), self._options(), providers=self._providers()
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            if is_blameless(error):
                raise
            logger.info("session refused", exc_info=error)
            raise ModelBrokenError(
                "the ONNX file is truncated, corrupt or uses unknown operators; export it again"
            ) from None
        return OnnxModel(description, session, self._device, estimate, before)

    def prepare(self, path: Path) -> bool:
        """Make nothing, and say so (process of its own)."""
        return False

    def parked(self) -> tuple[Path, ...]:
        """Return nothing: what leaves the device is gone (any thread)."""
        return ()

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_SEVERITY
        # Idle models must not burn the cores that the busy one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # An arena would keep each model's peak activations for as long as the model is open.
        options.enable_cpu_mem_arena = False
        return options

    def _providers(self) -> list[Any]:
        cuda = "CUDAExecutionProvider"
        if self._device.type == "cuda" and cuda in onnxruntime.get_available_providers():
            return [(cuda, {"device_id": self._device.index or 0}), "CPUExecutionProvider"]
        return ["CPUExecutionProvider"]


class OnnxModel(BackedModel):
    """One session and what its file says of it."""

    def __init__(
        self,
        description: Description,
        session: Any,
        device: torch.device,
        estimate: int,
        resident_before: int,
    ) -> None:
        (pixels, *others) = session.get_inputs()
        if others or len(pixels.shape) != 4:  # batch, channels, height, width
            raise ModelBrokenError("the ONNX file takes other inputs than one picture")
        if isinstance(pixels.shape[0], int) and pixels.shape[0] != 1:
            raise ModelBrokenError(
                f"the ONNX file takes {pixels.shape[0]} pictures at once; export it with batch=1"
            )
        backend = predictors.Backend(
            description=description,
            device=device,
            forward=self._forward,
            format="onnx",
            fp16="float16" in pixels.type,
            batches=not isinstance(pixels.shape[0], int),
        )
        super().__init__(backend, was_prepared=True)
        self._session: Any | None = session
        self._input = pixels.name
        self._outputs = [output.name for output in session.get_outputs()]
        self._estimate = estimate
        self._resident_before = resident_before
        self._nbytes = estimate

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._nbytes} bytes"
        return f"<OnnxModel {self.info.task}: {state}>"

    @property
    def footprint(self) -> Footprint:
        """What the process grew by, within what is plausible; an estimate until it was warm."""
        return Footprint(self._nbytes)

    def warm_up(self) -> None:
        """Run it at its own input size, and time batches (stream)."""
        predictors.run_once(self._backend)
        self._nbytes = plausible_growth(self._resident_before, self._estimate)
        self._profile = predictors.time_batches(self._backend)

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (any thread)."""
        self._closed = True
        self._session = None
        release_free_memory()

    def _forward(self, pixels: torch.Tensor) -> Any:
        self._check_open()
        assert self._session is not None  # noqa: S101 - what being open means
        raw = self._session.run(self._outputs, {self._input: pixels.cpu().numpy()})
        tensors = [torch.as_tensor(np.asarray(part)).to(self._backend.device) for part in raw]
        return tensors[0] if len(tensors) == 1 else tensors


def _inspect(path: Path) -> Footprint:
    read_metadata(path)
    held_bytes = max(inspect_graph(path), path.stat().st_size)
    release_free_memory()
    return Footprint(int(held_bytes * _WEIGHT_FACTOR) + _SESSION_BYTES)
