"""One compiled model of OpenVINO."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from serve_app.engines import predictors
from serve_app.engines.backed_model import BackedModel
from serve_app.engines.base import Description
from serve_app.engines.memory import plausible_growth, release_free_memory
from serve_app.errors import ModelBrokenError
from serve_app.types import Footprint


class OpenVinoModel(BackedModel):
    """A compiled model and what its file says of it."""

    def __init__(
        self,
        description: Description,
        network: Any,
        estimate: int,
        resident_before: int,
        *,
        was_prepared: bool,
    ) -> None:
        """Hold `network`, a compiled model.

        Args:
            description: what the file says
            network: openvino.CompiledModel
            estimate: bytes that it should take
            resident_before: the process's size in bytes before it was opened
            was_prepared: whether it was imported rather than compiled

        Raises:
            ModelBrokenError: it takes other inputs than pictures one by one
        """
        batch = _batch_of(network)
        backend = predictors.Backend(
            description=description,
            device=torch.device("cpu"),
            forward=self._forward,
            format="openvino",
            fp16=network.input(0).element_type.to_dtype() == np.float16,
            batches=batch is None,
        )
        super().__init__(backend, was_prepared=was_prepared)
        self._requests = _Requests(network)
        self._estimate = estimate
        self._resident_before = resident_before
        self._nbytes = estimate

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._nbytes} bytes"
        return f"<OpenVinoModel {self.info.task}: {state}>"

    @property
    def footprint(self) -> Footprint:
        """What the process grew by, within what is plausible; an estimate until it was warm."""
        return Footprint(self._nbytes)

    def warm_up(self) -> None:
        """Run it at its own input size, and time batches (stream)."""
        predictors.run_once(self._backend)
        self._profile = predictors.time_batches(self._backend)
        self._nbytes = plausible_growth(self._resident_before, self._estimate)

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (any thread)."""
        self._closed = True
        self._requests.close()
        release_free_memory()

    def _forward(self, pixels: torch.Tensor) -> Any:
        with self._requests.one() as request:
            answers = request.infer([pixels.contiguous().numpy()], share_inputs=True)
            # The request's own memory is written to again by the next pass.
            parts = [torch.from_numpy(np.array(answer)) for answer in answers.values()]
        return parts[0] if len(parts) == 1 else parts


class _Requests:
    """The inference requests of one model: one for each pass that runs at the same time."""

    def __init__(self, network: Any) -> None:
        self._network: Any | None = network
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[Any]:
        """Lend a request; one whose pass failed is not lent again."""
        with self._lock:
            if self._network is None:
                raise RuntimeError("the model is closed")
            request = self._idle.pop() if self._idle else None
            network = self._network
        if request is None:
            request = network.create_infer_request()
        yield request
        with self._lock:
            if self._network is not None:
                self._idle.append(request)

    def close(self) -> None:
        with self._lock:
            self._network = None
            self._idle.clear()


def _batch_of(network: Any) -> int | None:
    """Return how many pictures a model takes at once; None for any number."""
    shape = network.input(0).partial_shape if len(network.inputs) == 1 else None
    if shape is None or shape.rank.is_dynamic or len(shape) != 4:  # batch, channels, height, width
        raise ModelBrokenError("the model takes other inputs than one picture")
    if shape[0].is_dynamic:
        return None
    batch = int(shape[0].get_length())
    if batch != 1:
        raise ModelBrokenError(f"the model takes {batch} pictures at once; export it with batch=1")
    return batch
