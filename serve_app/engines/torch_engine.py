"""Runs `.pt` checkpoints with PyTorch; models of one structure share one graph."""

from pathlib import Path
from typing import Any

import torch

from serve_app.engines import predictors
from serve_app.engines.archive import check_records
from serve_app.engines.base import Answer, Description, ModelInfo, ModelInput
from serve_app.engines.checkpoint import read_model, read_structure
from serve_app.engines.costs import GraphCosts
from serve_app.engines.files import VerifiedFiles
from serve_app.engines.graphs import (
    Graph,
    GraphPool,
    dismantle,
    move_plain_tensors,
    sign,
    take_tensors,
)
from serve_app.engines.memory import ActivationPeak, release_free_memory, resident_bytes
from serve_app.engines.weights import Weights, lay_out
from serve_app.types import Footprint, ImageArray, PredictParams


class TorchEngine:
    """Opens `.pt` checkpoints on one device, in fp32."""

    def __init__(self, device: str = "cpu") -> None:
        """Run on `device`: "cpu" or "cuda:n"."""
        self._device = torch.device(device)
        self._graphs = GraphPool()
        self._costs = GraphCosts()
        self._verified = VerifiedFiles()

    def verify(self, path: Path) -> Footprint:
        """Check the file without running it and estimate its footprint (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        return self._verified.get(path, self._inspect)

    def open(self, path: Path) -> "TorchModel":
        """Read the file into device memory, without a forward pass (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        checkpoint = read_model(path)
        tensors = take_tensors(checkpoint.module)
        move_plain_tensors(checkpoint.module, self._device)
        graph = self._graphs.adopt(checkpoint.module)
        weights = Weights.pack(tensors, channels_last=_is_channels_last(self._device))
        self._costs.assume(graph.signature, checkpoint.description.info)
        weights = weights.to(self._device)
        description = checkpoint.description
        del checkpoint, tensors
        release_free_memory()  # what reading took, which is more than what is kept
        return TorchModel(description, graph, weights, self._costs, self._device)

    def _inspect(self, path: Path) -> Footprint:
        checkpoint = read_structure(path)
        check_records(path)
        skeleton = checkpoint.module
        own_bytes = lay_out(take_tensors(skeleton), channels_last=False).nbytes
        signature = sign(skeleton)
        self._costs.estimate(signature, skeleton, checkpoint.description.info)
        dismantle(skeleton)
        return Footprint(own_bytes, {signature: self._costs[signature]})


class TorchModel:
    """The weights of one checkpoint on a device, and the graph that runs them."""

    def __init__(
        self,
        description: Description,
        graph: Graph,
        weights: Weights,
        costs: GraphCosts,
        device: torch.device,
    ) -> None:
        self._graph: Graph | None = graph
        self._weights = weights
        self._costs = costs
        self._signature = graph.signature
        self._nbytes = weights.layout.nbytes
        self._backend = predictors.Backend(
            description=description, device=device, forward=self._forward, format="pt"
        )

    def __repr__(self) -> str:
        state = "closed" if self._graph is None else f"{self._nbytes} bytes"
        return f"<TorchModel {self.info.task} on graph {self._signature}: {state}>"

    @property
    def info(self) -> ModelInfo:
        """Task, class names and input size."""
        return self._backend.description.info

    @property
    def footprint(self) -> Footprint:
        """Its weights, exactly, and its graph: an estimate until the graph was warmed up once."""
        return Footprint(self._nbytes, {self._signature: self._costs[self._signature]})

    def warm_up(self) -> None:
        """Run a forward pass, unless the graph has done one at this input size (engine thread).

        Models of one graph differ in numbers only: once one of them ran, nothing is left to warm.
        """
        assert self._graph is not None  # noqa: S101 - it is not closed before it is warm
        if self.info.imgsz in self._graph.warmed:
            return
        needed_bytes = self._measured_warm_up()
        self._graph.warmed.add(self.info.imgsz)
        self._costs.measure(self._signature, self.info, needed_bytes)
        release_free_memory()

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Turn a picture into this model's input (decoder thread).

        Raises:
            InvalidParameterError: a parameter does not fit this model (class id, input size)
            InvalidImageError: the picture is too long and narrow to be classified
        """
        return predictors.preprocess(self._backend, image, params, annotate=annotate)

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Answer for inputs of one shape, each as if alone (stream)."""
        if self._graph is None:
            raise RuntimeError("the model is closed")
        return predictors.predict(self._backend, inputs)

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (engine thread)."""
        self._weights.close()
        self._graph = None
        if self._backend.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            release_free_memory()

    def _forward(self, pixels: torch.Tensor) -> Any:
        if self._graph is None:
            raise RuntimeError("the model is closed")
        return self._graph.run(self._weights.tensors, pixels)

    def _measured_warm_up(self) -> int:
        """Warm up, and return the bytes that it took at its peak beyond the weights."""
        device = self._backend.device
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            predictors.warm_up(self._backend)
            return int(torch.cuda.max_memory_allocated(device)) - before
        before = resident_bytes()
        with ActivationPeak(self._weights.tensors.values()) as activations:
            predictors.warm_up(self._backend)
        growth = resident_bytes() - before
        # Other threads grow the process too: what it grew by counts only as far as is plausible.
        peak_bytes = int(activations.peak_bytes)
        return max(peak_bytes, min(growth, 2 * peak_bytes))


def _is_channels_last(device: torch.device) -> bool:
    """Whether Ultralytics lays out native models channels-last here, which changes roundings."""
    return device.type == "cpu" and bool(torch.backends.mkldnn.enabled) and _has_onednn()


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
