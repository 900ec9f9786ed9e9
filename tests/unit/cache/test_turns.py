"""Fairness: a load without room neither blocks the others nor starves; unload and reconfigure."""

import asyncio

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.errors import InvalidParameterError, OverloadedError
from tests.unit.cache.fakes import (
    A,
    B,
    C,
    Client,
    D,
    E,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    Recorder,
    sizes,
    spin,
)

Cache = ModelCache[FakePrepared, FakeModel]


@pytest.fixture
def observer() -> Recorder:
    """Return what the cache under test tells."""
    return Recorder()


@pytest.fixture
def loader() -> FakeLoader:
    """Return the loader of models of 4 bytes, and a large one, E, of 8."""
    return FakeLoader({**dict.fromkeys((A, B, C, D), sizes(4)), E: sizes(8)})


@pytest.fixture
def cache(loader: FakeLoader, observer: Recorder, clock: FakeClock) -> Cache:
    """Return a cache with room for two models of 4 bytes."""
    return ModelCache(loader, limits=CacheLimits(9), observer=observer, clock=clock, patience_s=1.0)


async def test_load_without_room_lets_smaller_ones_pass(cache: Cache) -> None:
    """A large load that waits for a lease keeps nobody out who has room now."""
    holder, large = Client(cache, A), Client(cache, E)
    await spin()
    small = Client(cache, B)
    await spin()
    assert small.holds
    assert not large.holds
    small.leave()
    holder.leave()
    await spin()
    assert large.holds


async def test_nobody_passes_a_load_that_has_waited_long(
    cache: Cache, clock: FakeClock, loader: FakeLoader
) -> None:
    """A stream of small models in use cannot keep a large one out for ever."""
    first, second = Client(cache, A), Client(cache, B)
    await spin()
    large = Client(cache, E)
    await spin()
    clock.advance(1)
    small = Client(cache, C)
    await spin()
    first.leave()
    await spin()
    assert not small.holds, "although there is room for it now"
    second.leave()
    await spin()
    assert large.holds
    large.leave()
    await spin()
    assert small.holds
    assert loader.wrongs == []


async def test_busy_models_give_way_to_a_load_that_has_waited_long(
    cache: Cache, clock: FakeClock, observer: Recorder
) -> None:
    """Leases that overlap without end cannot keep a load out: new ones wait behind it."""
    busy = [Client(cache, A), Client(cache, B)]
    await spin()
    waiting = Client(cache, C)
    await spin()
    assert repr(cache) == "ModelCache(2 resident, 1 loading, 2 leases, 8/9 B)"
    clock.advance(1)
    overlapping = Client(cache, A)
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 1 loading, 1 evicting, 2 leases, 8/9 B)"
    assert cache.keys() == observer.keys == {B, C}
    busy[0].leave()
    await spin()
    assert waiting.holds
    assert not overlapping.holds
    busy[1].leave()
    await spin()
    assert overlapping.holds


async def test_busy_model_stays_when_the_load_gives_up(
    cache: Cache, clock: FakeClock, loader: FakeLoader, observer: Recorder
) -> None:
    """A model that should have left for a load stays when nobody wants that load any more."""
    busy = Client(cache, A)
    await spin()
    hasty = Client(cache, E, timeout_s=2)
    await spin()
    clock.advance(1)
    queued = Client(cache, A)
    await spin()
    assert not queued.holds
    clock.advance(1)
    await spin()
    assert isinstance(hasty.error, OverloadedError)
    assert queued.holds
    assert busy.holds
    assert observer.outcomes[-1] == (A, "waited")
    assert observer.evictions == []
    assert loader.loads(A) == 1
    assert cache.keys() == observer.keys == {A}


async def test_cleared_room_is_not_taken_by_a_later_load(cache: Cache, loader: FakeLoader) -> None:
    """What was evicted for a large load is not taken by small ones before it is complete."""
    await cache.load(A, timeout_s=60)
    await cache.load(B, timeout_s=60)
    loader.by_hand.add("close")
    large = Client(cache, E)
    await spin()
    loader.finish("close", A)
    small = Client(cache, C)
    await spin()
    assert loader.loads(C) == 0
    loader.finish("close", B)
    await spin()
    assert large.holds
    large.leave()
    await spin()
    loader.finish("close", E)
    await spin()
    assert small.holds


async def test_unload_closes_an_idle_model(cache: Cache, observer: Recorder) -> None:
    """True when it was there, False when it was not."""
    await cache.load(A, timeout_s=60)
    assert await cache.unload(A, timeout_s=60)
    assert not await cache.unload(A, timeout_s=60)
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/9 B)"
    assert observer.evictions == [(A, "unloaded")]


async def test_unload_waits_for_leases(cache: Cache, loader: FakeLoader) -> None:
    """It ends with the last lease; who asks meanwhile gets the model loaded anew."""
    holder = Client(cache, A)
    await spin()
    unload = asyncio.create_task(cache.unload(A, timeout_s=60))
    await spin()
    again = Client(cache, A)
    await spin()
    assert not unload.done()
    assert not again.holds
    holder.leave()
    await spin()
    assert unload.result()
    assert again.holds
    assert loader.loads(A) == 2
    assert loader.wrongs == []


async def test_unload_that_takes_too_long_gives_up(cache: Cache, clock: FakeClock) -> None:
    """A 503 with Retry-After, and the model stays for everyone."""
    Client(cache, A)
    await spin()
    unload = asyncio.create_task(cache.unload(A, timeout_s=1))
    await spin()
    assert cache.keys() == frozenset()
    clock.advance(1)
    await spin()
    with pytest.raises(OverloadedError) as caught:
        await unload
    assert caught.value.retry_after_s is not None
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 4/9 B)"
    assert cache.keys() == {A}


async def test_unload_of_a_loading_model_waits_for_the_load(
    cache: Cache, loader: FakeLoader
) -> None:
    """Who asked for the model before gets it; then it is closed."""
    loader.by_hand.add("open")
    client = Client(cache, A)
    await spin()
    unload = asyncio.create_task(cache.unload(A, timeout_s=60))
    await spin()
    loader.finish("open", A)
    await spin()
    assert client.holds
    assert not unload.done()
    client.leave()
    await spin()
    assert unload.result()
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/9 B)"


async def test_pinned_model_is_not_unloaded(cache: Cache) -> None:
    """A pin is the operator's word: it is taken back in the configuration, not by a request."""
    await cache.load(A, timeout_s=60)
    cache.reconfigure(CacheLimits(9, pinned=frozenset({A, B})))
    with pytest.raises(InvalidParameterError, match="remove it from pinned first"):
        await cache.unload(A, timeout_s=60)
    assert not await cache.unload(B, timeout_s=60)
    assert cache.keys() == {A}


async def test_pin_saves_a_model_that_is_leaving(cache: Cache, observer: Recorder) -> None:
    """A pin that comes while a model in use is on its way out keeps it, whatever the budget."""
    busy = Client(cache, A)
    await spin()
    cache.reconfigure(CacheLimits(3))
    assert cache.keys() == frozenset()
    cache.reconfigure(CacheLimits(3, pinned=frozenset({A})))
    assert cache.keys() == observer.keys == {A}
    busy.leave()
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 4/3 B)"
    assert observer.evictions == []


async def test_pin_ends_an_unload_that_waits(cache: Cache, observer: Recorder) -> None:
    """The operator's pin comes while an unload waits for leases: the model stays."""
    busy = Client(cache, A)
    await spin()
    unload = asyncio.create_task(cache.unload(A, timeout_s=60))
    await spin()
    cache.reconfigure(CacheLimits(9, pinned=frozenset({A})))
    await spin()
    with pytest.raises(InvalidParameterError, match="pinned"):
        await unload
    busy.leave()
    await spin()
    assert cache.keys() == {A}
    assert observer.evictions == []


async def test_smaller_budget_evicts_idle_models_at_once(
    cache: Cache, clock: FakeClock, observer: Recorder
) -> None:
    """In place and without waiting, the least recently used first."""
    await cache.load(A, timeout_s=60)
    clock.advance(1)
    await cache.load(B, timeout_s=60)
    cache.reconfigure(CacheLimits(5))
    assert cache.keys() == {B}
    assert cache.budget_bytes == 5
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 4/5 B)"
    assert observer.evictions == [(A, "reconfigured")]


async def test_smaller_budget_evicts_models_in_use_as_their_leases_end(
    cache: Cache, observer: Recorder
) -> None:
    """Nothing is closed under a request."""
    first, second = Client(cache, A), Client(cache, B)
    await spin()
    cache.reconfigure(CacheLimits(5))
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 evicting, 2 leases, 8/5 B)"
    first.leave()
    second.leave()
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 4/5 B)"
    assert observer.evictions == [(A, "reconfigured")]


async def test_larger_budget_lets_waiting_loads_in(cache: Cache) -> None:
    """A load that waited for room goes on at once."""
    Client(cache, A)
    large = Client(cache, E)
    await spin()
    assert not large.holds
    cache.reconfigure(CacheLimits(12))
    await spin()
    assert large.holds


async def test_smaller_budget_takes_promised_room_back(
    cache: Cache, loader: FakeLoader, observer: Recorder
) -> None:
    """A load that was promised room which is not there any more is judged anew."""
    await cache.load(A, timeout_s=60)
    loader.by_hand.add("close")
    large = Client(cache, E)
    await spin()
    cache.reconfigure(CacheLimits(7))
    await spin()
    assert large.error is not None
    assert large.error.code == "model_exceeds_budget"
    loader.finish("close", A)
    await spin()
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/7 B)"
    assert cache.keys() == observer.keys == frozenset()


async def test_budget_that_shrinks_while_a_model_opens_refuses_it(
    cache: Cache, loader: FakeLoader
) -> None:
    """An opening load is not interrupted; what came of it is closed when it does not fit."""
    loader.by_hand.add("open")
    client = Client(cache, E)
    await spin()
    cache.reconfigure(CacheLimits(7))
    loader.finish("open", E)
    await spin()
    assert client.error is not None
    assert client.error.code == "model_exceeds_budget"
    assert loader.opened[0].closed
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/7 B)"
