"""The bridge against Ray's real wrapper: what is advertised is what is resident or loading."""

import asyncio
from collections.abc import AsyncIterator, Collection
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve import multiplex
from ray.serve._private.common import DeploymentID, ReplicaID

from serve_app.cache import CacheLimits, ModelCache, NullObserver
from serve_app.errors import ModelExceedsBudgetError, OverloadedError
from serve_app.replica.multiplex import PUSH_INTERVAL_S, MultiplexBridge
from serve_app.types import ModelKey
from tests.unit.cache.fakes import A, B, C, D, FakeLoader, FakeModel, FakePrepared, sizes, spin


class Owner:
    """Stands where the Detector stands."""

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def model_slot(self, key: str) -> object:
        """As the Detector's: returns at once."""
        return object()


class Follower(NullObserver):
    """Tells the bridge what the cache holds, as the Detector does."""

    def __init__(self, bridge: MultiplexBridge) -> None:
        self._bridge = bridge

    def changed(self, keys: Collection[ModelKey]) -> None:
        """Pass the keys on."""
        self._bridge.follow({str(key) for key in keys})


class Controller:
    """Records what a replica tells Serve's controller."""

    def __init__(self) -> None:
        self.advertised: list[set[str]] = []

    def record_request_routing_info(self, info: Any) -> None:  # noqa: ANN401
        """Take one message."""
        self.advertised.append(set(info.multiplexed_model_ids))


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    """A replica's surroundings, without a cluster."""
    recorder = Controller()
    replica_id = ReplicaID("replica", DeploymentID("Detector", "yolo"))
    context = SimpleNamespace(app_name="yolo", deployment="Detector", replica_id=replica_id)
    monkeypatch.setattr(multiplex, "_get_internal_replica_context", lambda: context)
    monkeypatch.setattr(multiplex, "_get_global_client", lambda: recorder)
    return recorder


@pytest.fixture
async def owner(controller: Controller) -> AsyncIterator[Owner]:
    """An owner whose wrapper pushes only when a test says so."""
    owner = Owner()
    yield owner
    wrapper = getattr(owner, "__serve_multiplex_wrapper", None)
    if wrapper is not None:
        await wrapper.metrics_pusher.graceful_shutdown()


def _push(owner: Owner) -> None:
    getattr(owner, "__serve_multiplex_wrapper")._push_model_ids_info()


async def test_advertised_ids_are_taken_back_and_pushed(
    owner: Owner, controller: Controller
) -> None:
    """An id appears with the first request and goes when the cache no longer holds it."""
    bridge = MultiplexBridge(owner, object)
    assert bridge.advertised == frozenset()
    bridge.follow({"a@1"})  # before the wrapper exists there is nothing to take back

    for key in ("a@1", "b@1"):
        await owner.model_slot(key)
    assert bridge.advertised == {"a@1", "b@1"}
    _push(owner)
    bridge.follow({"b@1"})
    assert bridge.advertised == {"b@1"}
    _push(owner)
    bridge.follow({"b@1"})  # nothing changed, nothing to push
    _push(owner)
    assert controller.advertised[0] == {"a@1", "b@1"}
    assert controller.advertised[-1] == {"b@1"}


async def test_an_id_that_was_taken_back_can_return(owner: Owner, controller: Controller) -> None:
    """After an eviction the next request advertises the model again."""
    bridge = MultiplexBridge(owner, object)
    await owner.model_slot("a@1")
    bridge.follow(())
    assert bridge.advertised == frozenset()
    await owner.model_slot("a@1")
    assert bridge.advertised == {"a@1"}
    bridge.follow(())
    bridge.follow({"a@1"})  # a load that began by itself is advertised too
    assert bridge.advertised == {"a@1"}
    assert await owner.model_slot("a@1") is not None


async def test_no_series_per_model_is_left_behind(owner: Owner, controller: Controller) -> None:
    """Ray's gauge of one series per model id is silenced once the bridge has seen the wrapper."""
    bridge = MultiplexBridge(owner, object)
    await owner.model_slot("a@1")
    bridge.follow({"a@1"})
    wrapper = getattr(owner, "__serve_multiplex_wrapper")
    assert not isinstance(wrapper.registered_model_gauge, serve.metrics.Gauge)
    _push(owner)


async def test_what_is_advertised_follows_the_cache(owner: Owner, controller: Controller) -> None:
    """Loads, evictions, failures, refusals and cancellations: the two sets stay equal."""
    bridge = MultiplexBridge(owner, object)
    observer = Follower(bridge)
    loader = FakeLoader({A: sizes(60), B: sizes(60), C: sizes(200), D: sizes(10)}, "open")
    cache: ModelCache[FakePrepared, FakeModel] = ModelCache(
        loader, limits=CacheLimits(100), observer=observer
    )

    async def request(key: ModelKey) -> None:
        await owner.model_slot(str(key))
        try:
            await cache.load(key, timeout_s=5.0)
        finally:
            observer.changed(cache.keys())

    def check(*keys: ModelKey) -> None:
        assert cache.keys() == set(keys)
        assert bridge.advertised == {str(key) for key in keys}

    first = asyncio.create_task(request(A))
    await spin()
    check(A)  # while it loads
    loader.finish("open", A)
    await first
    check(A)
    second = asyncio.create_task(request(B))
    await spin()
    check(B)  # its victim is gone
    loader.finish("open", B, OverloadedError("the device is full"))
    with pytest.raises(OverloadedError):
        await second
    check()
    with pytest.raises(ModelExceedsBudgetError):
        await request(C)
    check()
    left = asyncio.create_task(request(D))
    await spin()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    check(D)  # its load goes on and will be of use
    loader.finish("open", D)
    await spin()
    check(D)
    await cache.aclose()
    check()


async def test_routers_are_told_less_often_than_ray_would(owner: Owner) -> None:
    """The task that pushes is Ray's own, with our interval."""
    bridge = MultiplexBridge(owner, object)
    await owner.model_slot("a@1")

    assert bridge.advertised == {"a@1"}

    wrapper = getattr(owner, "__serve_multiplex_wrapper")
    tasks = wrapper.metrics_pusher._tasks
    assert set(tasks) == {wrapper._PUSH_MULTIPLEXED_MODEL_IDS_TASK_NAME}
    (task,) = tasks.values()
    assert task.interval_s == PUSH_INTERVAL_S
    assert task.task_func == wrapper._push_model_ids_info
