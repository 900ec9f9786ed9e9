"""Opens `.pt` checkpoints with PyTorch; models of one structure share one graph.

A checkpoint is opened in one of two ways: plainly, by reading and folding it, or from its prepared
weights, which `prepare` makes beforehand in a process of its own.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from serve_app.engines.archive import check_records
from serve_app.engines.arena import HostArena
from serve_app.engines.artifact import (
    Artifact,
    ArtifactError,
    ArtifactUnreadableError,
    artifact_name,
    read_artifact,
    read_header,
    write_artifact,
)
from serve_app.engines.base import Description
from serve_app.engines.checkpoint import Checkpoint, read_model, read_structure
from serve_app.engines.costs import GraphCosts
from serve_app.engines.files import KnownFiles, content_hash
from serve_app.engines.graphs import (
    Graph,
    GraphPool,
    dismantle,
    move_plain_tensors,
    sign,
    take_tensors,
)
from serve_app.engines.memory import release_free_memory
from serve_app.engines.precision import Precision, resolve_precision
from serve_app.engines.slots import CudaCapture, Run, SlottedRunner
from serve_app.engines.store import ArtifactStore
from serve_app.engines.structure import IndescribableError, describe, rebuild, signature_of
from serve_app.engines.torch_model import TorchModel
from serve_app.engines.weights import Layout, Weights, allocate, lay_out
from serve_app.types import Footprint

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Network:
    """A checkpoint taken apart: a skeleton on the meta device, its tensors, its description."""

    skeleton: nn.Module
    tensors: dict[str, torch.Tensor]
    description: Description

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Network":
        tensors = take_tensors(checkpoint.module)
        return cls(checkpoint.module, tensors, checkpoint.description)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What makes a parked block a model again."""

    path: Path
    description: Description
    signature: str
    layout: Layout


class TorchEngine:
    """Opens `.pt` checkpoints on one device."""

    def __init__(
        self,
        device: str = "cpu",
        *,
        precision: Precision = "fp32",
        streams: int = 1,
        store: ArtifactStore | None = None,
        arena_bytes: int = 0,
        slots: bool | None = None,
    ) -> None:
        """Open files on one device.

        Args:
            device: "cpu" or "cuda:n"
            precision: the numbers that models compute with
            streams: passes that run at once
            store: where prepared weights are kept; None opens every model plainly
            arena_bytes: host memory for weights whose models have left the device
            slots: whether models run over fixed slots; None: on a GPU, where that is recorded

        Raises:
            ValueError: the device cannot do what is asked for
        """
        self._device = torch.device(device)
        self._dtype = resolve_precision(precision, self._device)
        self._channels_last = _is_channels_last(self._device, self._dtype)
        self._store = store
        on_gpu = self._device.type == "cuda"
        slots = on_gpu if slots is None else slots
        if slots and streams > 1:
            raise ValueError("slots are run by one stream: leave `streams` unset on a GPU")
        self._arena = HostArena(arena_bytes, pin=on_gpu)
        self._recipes: dict[str, _Recipe] = {}
        self._recipes_lock = threading.Lock()
        self._allocating = threading.Lock()
        self._graphs = GraphPool(self._dtype, make_runner=self._make_runner if slots else None)
        self._costs = GraphCosts(streams)
        self._verified: KnownFiles[Footprint] = KnownFiles()
        self._names: KnownFiles[str] = KnownFiles()

    def verify(self, path: Path) -> Footprint:
        """Check the file without running it and estimate its footprint (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        return self._verified.get(path, self._inspect)

    def open(self, path: Path) -> TorchModel:
        """Read the file into device memory, without a forward pass (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        return self._open_parked(path) or self._open_prepared(path) or self._open_plainly(path)

    def is_prepared(self, path: Path) -> bool:
        """Whether `open` will find prepared weights (loader thread)."""
        return self._store is not None and self._store.find(self._name(path)) is not None

    def prepare(self, path: Path) -> bool:
        """Keep the file's prepared weights; return whether that made any (process of its own).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
        if self._store is None or self.is_prepared(path):
            return False
        name = self._name(path)
        check_records(path)
        network = _Network.of(read_model(path))
        try:
            structure = describe(network.skeleton)
            graph = Graph(network.skeleton, signature_of(structure), self._dtype)
            weights = self._pack(network, graph)
            graph_bytes = self._costs.estimate(graph, network.skeleton, network.description.info)
            if self._name(path) != name:  # replaced while it was read: these are not its weights
                return False
            made = self._store.put(
                name,
                lambda partial: write_artifact(
                    partial,
                    weights,
                    network.description,
                    structure,
                    signature=graph.signature,
                    graph_bytes=graph_bytes,
                    channels_last=self._channels_last,
                ),
            )
        except IndescribableError as error:
            logger.info("%s will always be opened plainly: %s", path, error)
            return False
        finally:
            dismantle(network.skeleton)
        return made is not None

    def parked(self) -> tuple[Path, ...]:
        """Return the files that `open` finds in host memory, the last used last (any thread)."""
        found = (self._recipes.get(name) for name in self._arena.keys)
        return tuple(
            recipe.path for recipe in found if recipe and self._graphs.find(recipe.signature)
        )

    def _inspect(self, path: Path) -> Footprint:
        header = self._from_store(path, read_header)
        if header is not None:
            info = header.description.info
            self._costs.assume(header.signature, info, header.graph_bytes)
            graph_bytes = self._costs.total(header.signature, info)
            return Footprint(header.own_bytes, {header.signature: graph_bytes})
        network = _Network.of(read_structure(path))
        check_records(path)
        graph = Graph(network.skeleton, sign(network.skeleton), self._dtype)
        own_bytes = lay_out(network.tensors, graph.dtype_of, channels_last=False).nbytes
        info = network.description.info
        self._costs.estimate(graph, network.skeleton, info)
        dismantle(network.skeleton)
        return Footprint(own_bytes, {graph.signature: self._costs.total(graph.signature, info)})

    def _open_plainly(self, path: Path) -> TorchModel:
        name = self._name_to_park(path)
        network = _Network.of(read_model(path))
        move_plain_tensors(network.skeleton, self._device)
        graph = self._graphs.adopt(network.skeleton)
        description = network.description
        weights = self._pack(network, graph)
        self._costs.assume(graph.signature, description.info)
        del network
        release_free_memory()  # what reading took, which is more than what is kept
        if name != self._name_to_park(path):
            name = None  # replaced while it was read: these are not its weights
        return self._bring(name, path, description, graph, weights, was_prepared=False)

    def _open_prepared(self, path: Path) -> TorchModel | None:
        artifact = self._from_store(path, read_artifact)
        if artifact is None:
            return None
        header = artifact.header
        try:
            graph = self._graphs.get(header.signature, lambda: self._rebuild(artifact))
        except (IndescribableError, ValueError) as error:
            self._refuse(path, error)
            return None
        self._costs.assume(graph.signature, header.description.info, header.graph_bytes)
        name = self._name_to_park(path)
        description = header.description
        return self._bring(name, path, description, graph, artifact.weights, was_prepared=True)

    def _open_parked(self, path: Path) -> TorchModel | None:
        """Open from host memory, without a look at the disk."""
        if not self._arena.nbytes:
            return None
        name = self._name(path)
        recipe = self._recipes.get(name)
        graph = None if recipe is None else self._graphs.find(recipe.signature)
        if recipe is None or graph is None:
            return None
        with self._arena.borrow(name) as block:
            if block is None:
                return None
            weights = self._copy(Weights(recipe.layout, block))
        return self._model(recipe.description, graph, weights, was_prepared=True)

    def _name_to_park(self, path: Path) -> str | None:
        return self._name(path) if self._arena.nbytes else None

    def _bring(
        self,
        name: str | None,
        path: Path,
        description: Description,
        graph: Graph,
        weights: Weights,
        *,
        was_prepared: bool,
    ) -> TorchModel:
        """Bring weights to the device, and park them as `name` for the next time."""
        if name is not None and self._arena.park(name, weights.block):
            parked = set(self._arena.keys)
            with self._recipes_lock:
                for left in self._recipes.keys() - parked:
                    del self._recipes[left]
                self._recipes[name] = _Recipe(path, description, graph.signature, weights.layout)
        if self._device.type != "cpu":
            weights = self._copy(weights)
        return self._model(description, graph, weights, was_prepared=was_prepared)

    def _model(
        self, description: Description, graph: Graph, weights: Weights, *, was_prepared: bool
    ) -> TorchModel:
        return TorchModel(
            description, graph, weights, self._costs, self._device, was_prepared=was_prepared
        )

    def _copy(self, weights: Weights) -> Weights:
        """Return a copy on the device, complete."""
        nbytes = weights.layout.nbytes
        if self._device.type == "cpu":
            block = allocate(nbytes)
        else:
            with self._allocating:  # the driver refuses while a pass is being recorded
                block = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        block.copy_(weights.block)
        return Weights(weights.layout, block)

    def _make_runner(self, run: Run, layout: Layout, device: torch.device) -> SlottedRunner:
        on_gpu = device.type == "cuda"
        capture = CudaCapture(device, self._allocating) if on_gpu else None
        return SlottedRunner(run, layout, device, capture=capture)

    def _rebuild(self, artifact: Artifact) -> nn.Module:
        skeleton = rebuild(artifact.structure)
        if sign(skeleton) != artifact.header.signature:
            raise ArtifactError("its structure is another than its signature says")
        move_plain_tensors(skeleton, self._device)
        return skeleton

    def _pack(self, network: _Network, graph: Graph) -> Weights:
        layout = lay_out(network.tensors, graph.dtype_of, channels_last=self._channels_last)
        return Weights.pack(layout, network.tensors)

    # --- prepared weights -----------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        content = self._names.get(path, content_hash)
        return artifact_name(content, self._dtype, channels_last=self._channels_last)

    def _from_store(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """Return what `read` finds in the file's prepared weights; None where there are none."""
        found = self._store and self._store.find(self._name(path))
        try:
            return read(found) if found else None
        except ArtifactUnreadableError as error:
            logger.info("the prepared weights of %s are not used: %s", path, error)
            return None
        except ArtifactError as error:
            self._refuse(path, error)
            return None

    def _refuse(self, path: Path, error: Exception) -> None:
        """Throw prepared weights away that are not what was written: they are made anew."""
        logger.warning("the prepared weights of %s are refused: %s", path, error)
        if self._store is not None:
            self._store.discard(self._name(path))


def _is_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights lie channels-last here: where that is fast, or where Ultralytics does so."""
    if device.type == "cuda":
        return dtype != torch.float32
    return bool(torch.backends.mkldnn.enabled) and _has_onednn()


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
