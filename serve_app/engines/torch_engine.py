"""Runs `.pt` checkpoints with PyTorch; models of one structure share one graph."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.head import RTDETRDecoder

from serve_app.engines import predictors
from serve_app.engines.archive import check_records
from serve_app.engines.base import ModelInfo
from serve_app.engines.checkpoint import Checkpoint, read_model, read_structure
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
from serve_app.engines.weights import Weights, weight_bytes
from serve_app.types import Footprint, ImageArray, ImageResult, PredictParams

logger = logging.getLogger(__name__)

_FALLBACK_BYTES_PER_PIXEL = 256


class GraphCosts:
    """Bytes that graphs need beyond weights, by signature: estimated, then measured once."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._measured: set[str] = set()

    def __getitem__(self, signature: str) -> int:
        return self._bytes[signature]

    def needs_measuring(self, signature: str) -> bool:
        """Whether no model of this graph has been warmed up yet."""
        return signature not in self._measured

    def estimate(self, signature: str, skeleton: nn.Module, info: ModelInfo) -> int:
        """Return the known bytes, or the peak of a pass on the meta device, which costs none.

        The skeleton keeps meta tensors from that pass: it must not be run for answers.
        """
        if signature not in self._bytes:
            self._bytes[signature] = _dry_run(skeleton, info)
        return self._bytes[signature]

    def assume(self, signature: str, info: ModelInfo) -> None:
        """Put in a rough figure where there was no estimate."""
        self._bytes.setdefault(signature, _rough_bytes(info))

    def measure(self, signature: str, nbytes: int) -> None:
        """Take the measured bytes for good."""
        self._bytes[signature] = nbytes
        self._measured.add(signature)


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
        weights = Weights(tensors, self._device, channels_last=_channels_last(self._device))
        self._costs.assume(graph.signature, checkpoint.info)
        return TorchModel(checkpoint, graph, weights, self._costs, self._device)

    def _inspect(self, path: Path) -> Footprint:
        checkpoint = read_structure(path)
        check_records(path)
        skeleton = checkpoint.module
        own_bytes = weight_bytes(take_tensors(skeleton))
        signature = sign(skeleton)
        graph_bytes = self._costs.estimate(signature, skeleton, checkpoint.info)
        dismantle(skeleton)
        return Footprint(own_bytes, {signature: graph_bytes})


class TorchModel:
    """The weights of one checkpoint on a device, and the graph that runs them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        graph: Graph,
        weights: Weights,
        costs: GraphCosts,
        device: torch.device,
    ) -> None:
        self._info = checkpoint.info
        self._graph: Graph | None = graph
        self._weights = weights
        self._costs = costs
        self._signature = graph.signature
        self._nbytes = weights.nbytes
        self._backend = predictors.Backend(
            info=checkpoint.info,
            device=device,
            forward=self._forward,
            format="pt",
            end2end=checkpoint.end2end,
            rtdetr=_is_rtdetr(checkpoint.module),
            kpt_shape=checkpoint.kpt_shape,
            transforms=checkpoint.transforms,
        )

    def __repr__(self) -> str:
        state = "closed" if self._graph is None else f"{self._nbytes} bytes"
        return f"<TorchModel {self._info.task} on graph {self._signature}: {state}>"

    @property
    def info(self) -> ModelInfo:
        """Task, class names and input size."""
        return self._info

    @property
    def footprint(self) -> Footprint:
        """Its weights, exactly, and its graph: an estimate until the graph was warmed up once."""
        return Footprint(self._nbytes, {self._signature: self._costs[self._signature]})

    def warm_up(self) -> None:
        """Run one forward pass at the model's own input size (engine thread)."""
        if self._costs.needs_measuring(self._signature):
            nbytes = self._measured_warm_up()
            self._costs.measure(self._signature, nbytes)
            logger.info("graph %s needs %d bytes", self._signature, nbytes)
        else:
            predictors.warm_up(self._backend)

    def predict(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ImageResult:
        """Answer for one picture (engine thread).

        Raises:
            InvalidParameterError: a parameter does not fit this model (class id, input size)
        """
        return predictors.predict(self._backend, image, params, annotate=annotate)

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


def _is_rtdetr(module: Any) -> bool:
    return isinstance(module.model[-1], RTDETRDecoder)


def _channels_last(device: torch.device) -> bool:
    """Whether Ultralytics lays out native models channels-last here, which changes roundings."""
    return device.type == "cpu" and bool(torch.backends.mkldnn.enabled) and _has_onednn()


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _dry_run(skeleton: nn.Module, info: ModelInfo) -> int:
    known = [*skeleton.parameters(), *skeleton.buffers()]
    try:
        with torch.inference_mode(), ActivationPeak(known) as peak:
            skeleton(torch.empty(1, 3, *info.imgsz, device="meta"))
    except (NotImplementedError, RuntimeError) as error:  # operators without a meta version
        logger.debug("no dry run", exc_info=error)
        return _rough_bytes(info)
    return int(peak.peak_bytes)


def _rough_bytes(info: ModelInfo) -> int:
    height, width = info.imgsz
    return height * width * _FALLBACK_BYTES_PER_PIXEL
