"""A request holds its model for exactly as long as it is used, and waits for no other's load."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.engines.streams import Streams
from serve_app.errors import DeadlineExceededError, InvalidImageError, ReplicaFailingError
from serve_app.loading.loader import LoadedModel, PreparedFile
from serve_app.replica.service import PredictService
from serve_app.types import (
    Footprint,
    ModelFormat,
    ModelKey,
    ModelSpec,
    PredictParams,
    PredictRequest,
    PredictResult,
)
from tests.unit.replica.fakes import FakeModel, png, until


@dataclass
class FakeLoader:
    """Loads the models it is given; the loads of some can be held up."""

    models: Mapping[str, FakeModel]
    held: dict[str, asyncio.Event] = field(default_factory=dict)

    async def prepare(self, key: ModelKey) -> PreparedFile:
        """Take no time."""
        spec = ModelSpec(key, ModelFormat.PT, "folder", "nowhere")
        return PreparedFile(spec, Path("nowhere"), Footprint(1), {})

    async def open(self, prepared: PreparedFile) -> LoadedModel:
        """Wait to be let through."""
        name = prepared.spec.key.name
        if name in self.held:
            await self.held[name].wait()
        return LoadedModel(self.models[name], {})

    async def close(self, model: LoadedModel) -> None:
        """Close the model."""
        model.model.close()


@dataclass
class Bench:
    """A service over models that do as told."""

    loader: FakeLoader
    cache: ModelCache[PreparedFile, LoadedModel]
    service: PredictService
    log: list[str]

    def ask(
        self, name: str, *images: bytes, timeout_s: float = 30.0
    ) -> "asyncio.Task[PredictResult]":
        """Send a request."""
        request = PredictRequest(ModelKey(name, "1"), images, PredictParams(), timeout_s)
        return asyncio.create_task(self.service.predict(request))

    @property
    def leases(self) -> int:
        """How many requests hold a model."""
        return sum(model.leases for model in self.cache.snapshot())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Two models, one stream."""
    log: list[str] = []
    models = {name: FakeModel(name, log, seconds=(0.01,)) for name in ("hot", "cold")}
    streams, loader = Streams(1, 1), FakeLoader(models)
    cache: ModelCache[PreparedFile, LoadedModel] = ModelCache(loader, limits=CacheLimits(10))
    service = PredictService(cache, streams, max_image_pixels=1_000_000)
    yield Bench(loader, cache, service, log)
    await service.aclose()
    await cache.aclose()
    await asyncio.to_thread(streams.close)


PICTURE = png(1)


async def _running(bench: Bench, name: str) -> "asyncio.Task[PredictResult]":
    """Have a request held up in the stream."""
    model = bench.loader.models[name]
    model.opened.clear()
    task = bench.ask(name, PICTURE)
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: model.running == 1)
    return task


async def test_a_cold_load_holds_up_no_hot_model(bench: Bench) -> None:
    """Its requests are in no queue before the model is there."""
    bench.loader.held["cold"] = asyncio.Event()
    cold = [bench.ask("cold", PICTURE) for _ in range(20)]
    await asyncio.sleep(0)
    for _ in range(5):
        await bench.ask("hot", PICTURE)
    assert not any(task.done() for task in cold)
    bench.loader.held["cold"].set()
    assert all(result.cold for result in await asyncio.gather(*cold))


async def test_the_lease_outlasts_the_work(bench: Bench) -> None:
    """A cancelled request keeps it as long as a thread uses the model, also when it must go."""
    task = await _running(bench, "hot")
    task.cancel()
    bench.cache.reconfigure(CacheLimits(0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.leases == 1
    assert "closed hot" not in bench.log
    bench.loader.models["hot"].opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.leases == 0


async def test_the_lease_ends_with_the_first_error(bench: Bench) -> None:
    """The other pictures of the request are dropped."""
    with pytest.raises(InvalidImageError):
        await bench.ask("hot", PICTURE[:100], *[PICTURE] * 5)
    assert bench.leases == 0


async def test_time_counts_from_arrival(bench: Bench) -> None:
    """What cannot be answered in time is refused with a hint, and the lease ends."""
    await bench.ask("hot", PICTURE)
    with pytest.raises(DeadlineExceededError, match="allow more time"):
        await bench.ask("hot", PICTURE, timeout_s=0.0)
    assert bench.leases == 0


async def test_all_pictures_of_a_request_are_under_way_at_once(bench: Bench) -> None:
    """They wait for the stream together."""
    running = await _running(bench, "hot")
    task = bench.ask("hot", *[PICTURE] * 4)
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: len(bench.log) == 1 + 1 + 4)  # ran, and decoded
    bench.loader.models["hot"].opened.set()
    assert len((await task).images) == 4
    await running


async def test_waiting_and_loading_are_told_apart(bench: Bench) -> None:
    """Waiting is what the queues took."""
    running = await _running(bench, "hot")
    task = bench.ask("hot", PICTURE)
    await asyncio.sleep(0.05)
    bench.loader.models["hot"].opened.set()
    assert (await running).load_ms is not None
    result = await task
    assert result.load_ms is None
    assert result.queue_ms > 0
    assert result.queue_ms < 30_000


async def test_shutting_down_refuses_what_waits(bench: Bench) -> None:
    """So leases end at once, except that of the running batch."""
    running = await _running(bench, "hot")
    waiting = [bench.ask("hot", PICTURE) for _ in range(3)]
    await asyncio.sleep(0)
    await bench.service.aclose()
    for task in waiting:
        with pytest.raises(ReplicaFailingError, match="shutting down"):
            await task
    assert bench.leases == 1
    bench.loader.models["hot"].opened.set()
    await running
