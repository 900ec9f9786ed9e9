"""A replica's inside without Ray: real registry, loader, cache and engine, small models."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.engines.factory import create_engines
from serve_app.engines.streams import Streams
from serve_app.loading.loader import LoadedModel, Loader, PreparedFile
from serve_app.loading.sources.folder import FolderSource
from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.registry.live import AsyncRegistry
from serve_app.replica.service import PredictService
from tests.support.checkpoints import STRUCTURES, CheckpointFolder
from tests.support.fixtures import checkpoints, one_core
from tests.unit.replica.batcher_bench import Bench

__all__ = ["checkpoints", "one_core"]

MODELS = {"first": ("tiny-detect", 1), "second": ("tiny-detect", 2), "third": ("tiny-end2end", 3)}
"""Name: structure and seed; two of them share a graph."""


@dataclass(frozen=True)
class Replica:
    """The parts that a Detector wires together."""

    cache: ModelCache[PreparedFile, LoadedModel]
    service: PredictService
    repository: Path


@pytest.fixture
async def replica(tmp_path: Path, checkpoints: CheckpointFolder) -> AsyncIterator[Replica]:
    """A replica over three small models, with room for all."""
    for name, (structure, seed) in MODELS.items():
        assert structure in STRUCTURES
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        shutil.copy(checkpoints(structure, seed=seed, imgsz=96), folder / "model.pt")
    (tmp_path / "broken/1").mkdir(parents=True)
    (tmp_path / "broken/1/model.pt").write_bytes(b"nothing")
    streams = Streams(2, 1)
    loader = Loader(
        AsyncRegistry(Registry(FolderScanner(tmp_path))).spec,
        {"folder": FolderSource()},
        create_engines("cpu", threads=1, streams=2, precision="fp32"),
        streams,
    )
    cache: ModelCache[PreparedFile, LoadedModel] = ModelCache(loader, limits=CacheLimits(2**30))
    service = PredictService(cache, streams, max_image_pixels=1_000_000)
    yield Replica(cache, service, tmp_path)
    await service.aclose()
    await cache.aclose()
    await loader.aclose()
    streams.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A batcher's bench that is cleared after the test."""
    bench = Bench()
    yield bench
    await bench.batcher.aclose()
    await asyncio.to_thread(bench.streams.close)
    assert bench.batcher.held_bytes == 0
