"""One checkpoint open with PyTorch: its weights, and the graph that it shares with others."""

from typing import Any

import torch

from serve_app.engines import predictors
from serve_app.engines.backed_model import BackedModel
from serve_app.engines.base import Description
from serve_app.engines.costs import GraphCosts
from serve_app.engines.graphs import Graph
from serve_app.engines.memory import ActivationPeak, release_free_memory, resident_bytes
from serve_app.engines.profile import BatchProfile
from serve_app.engines.weights import Weights
from serve_app.types import Footprint


class TorchModel(BackedModel):
    """The weights of one checkpoint on a device, and the graph that runs them."""

    def __init__(
        self,
        description: Description,
        graph: Graph,
        weights: Weights,
        costs: GraphCosts,
        device: torch.device,
        *,
        was_prepared: bool,
    ) -> None:
        backend = predictors.Backend(
            description=description,
            device=device,
            forward=self._forward,
            format="pt",
            fp16=device.type == "cuda" and graph.dtype == torch.float16,
        )
        super().__init__(backend, was_prepared=was_prepared)
        self._graph: Graph | None = graph
        self._weights = weights
        self._costs = costs
        self._signature = graph.signature
        self._nbytes = weights.layout.nbytes

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._nbytes} bytes"
        return f"<TorchModel {self.info.task} on graph {self._signature}: {state}>"

    @property
    def footprint(self) -> Footprint:
        """Its weights, exactly, and its graph: an estimate until the graph was warmed up once."""
        return Footprint(
            self._nbytes, {self._signature: self._costs.total(self._signature, self.info)}
        )

    def warm_up(self) -> None:
        """Run the graph, unless it has been run at this input size, and time batches (stream).

        Models of one graph differ in numbers only: once one of them ran, nothing is left to warm.
        """
        graph = self._opened()
        if self.info.imgsz not in graph.profiles:
            measure = self._warm_up_gpu if self._backend.device.type == "cuda" else self._warm_up
            graph.profiles[self.info.imgsz], needed_bytes = measure()
            self._costs.measure(self._signature, self.info, needed_bytes)
        self._profile = graph.profiles[self.info.imgsz]

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (any thread)."""
        self._closed = True
        self._weights.close()
        self._graph = None  # which lives no longer than its models

    def _opened(self) -> Graph:
        self._check_open()
        assert self._graph is not None  # noqa: S101 - what being open means
        return self._graph

    def _forward(self, pixels: torch.Tensor) -> Any:
        return self._opened().forward(self._weights, pixels)

    def _warm_up(self) -> tuple[BatchProfile, int]:
        """Return the profile, and the bytes that a pass takes at its peak beyond the weights."""
        self._opened().get_ready()
        before = resident_bytes()
        with ActivationPeak(self._weights.tensors.values()) as activations:
            predictors.run_once(self._backend)
        growth = resident_bytes() - before
        profile = predictors.time_batches(self._backend)
        release_free_memory()
        # Other threads grow the process too: what it grew by counts only as far as is plausible.
        peak_bytes = int(activations.peak_bytes)
        return profile, max(peak_bytes, min(growth, 2 * peak_bytes)) * profile.max_batch

    def _warm_up_gpu(self) -> tuple[BatchProfile, int]:
        """Do the same by what the allocator holds: a recorded pass keeps its memory for good."""
        device = self._backend.device
        before = torch.cuda.memory_reserved(device)
        for batch in (1, 2, 4, 8):  # each twice: the second one is recorded, the third is timed
            for _ in range(2):
                predictors.run_once(self._backend, batch)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        profile = predictors.time_batches(self._backend)
        growth = torch.cuda.memory_reserved(device) - before
        # What the allocator had in stock does not grow it: then the pass itself is the measure.
        peak = torch.cuda.max_memory_allocated(device) - allocated
        return profile, max(growth, peak + self._opened().slot_bytes)
