"""Room: what is evicted for a load, when a load waits, and when it is refused."""

from collections.abc import Mapping

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.errors import ModelBrokenError, ModelExceedsBudgetError, OverloadedError
from serve_app.types import ModelKey
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
    Sizes,
    sizes,
    spin,
)

Cache = ModelCache[FakePrepared, FakeModel]


@pytest.fixture
def observer() -> Recorder:
    """Return what the cache under test tells."""
    return Recorder()


def make(
    models: Mapping[ModelKey, Sizes],
    limits: CacheLimits,
    observer: Recorder,
    clock: FakeClock,
    *by_hand: str,
) -> tuple[Cache, FakeLoader]:
    """Return a cache of these models and its loader."""
    loader = FakeLoader(models, *by_hand)
    return ModelCache(loader, limits=limits, observer=observer, clock=clock), loader


async def load(cache: Cache, clock: FakeClock, *keys: ModelKey) -> None:
    """Make `keys` resident, each a second after the other."""
    for key in keys:
        await cache.load(key, timeout_s=60)
        clock.advance(1)


async def test_least_recently_used_model_makes_room(observer: Recorder, clock: FakeClock) -> None:
    """A load evicts what was unused longest, and no more than it needs."""
    cache, loader = make(dict.fromkeys((A, B, C), sizes(4)), CacheLimits(10), observer, clock)
    await load(cache, clock, A, B, A, C)
    assert cache.keys() == observer.keys == {A, C}
    assert observer.evictions == [(B, "budget")]
    assert loader.calls[-3:] == ["prepare c", "close b", "open c"]


async def test_missing_or_corrupt_file_evicts_nothing(observer: Recorder, clock: FakeClock) -> None:
    """Nothing is evicted before the file is known to be good."""
    cache, loader = make(dict.fromkeys((A, B), sizes(10)), CacheLimits(10), observer, clock)
    await load(cache, clock, A)
    loader.by_hand.add("prepare")
    client = Client(cache, B)
    await spin()
    loader.finish("prepare", B, ModelBrokenError("corrupt"))
    await spin()
    assert isinstance(client.error, ModelBrokenError)
    assert observer.evictions == []
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 10/10 B)"


async def test_count_cap_holds_beside_the_budget(observer: Recorder, clock: FakeClock) -> None:
    """A cap on the number of models evicts although the bytes would fit."""
    models = dict.fromkeys((A, B, C), sizes(1))
    cache, _ = make(models, CacheLimits(100, max_models=2), observer, clock)
    await load(cache, clock, A, B, C)
    assert cache.keys() == {B, C}
    assert observer.evictions == [(A, "max_models")]


async def test_shared_graph_costs_once(observer: Recorder, clock: FakeClock) -> None:
    """Many models of one graph fit where engines of their own would not; the last one frees it."""
    models = {**dict.fromkeys((A, B, C), sizes(2, {"g": 40})), D: sizes(20)}
    cache, _ = make(models, CacheLimits(50), observer, clock)
    await load(cache, clock, A, B, C)
    assert cache.used_bytes == 46
    await load(cache, clock, D)
    assert cache.keys() == {D}
    assert cache.used_bytes == 20


async def test_bytes_of_a_closing_model_count_until_it_is_closed(
    observer: Recorder, clock: FakeClock
) -> None:
    """The memory is really there until then, so the load that needs it waits."""
    cache, loader = make(dict.fromkeys((A, B), sizes(8)), CacheLimits(10), observer, clock, "close")
    await load(cache, clock, A)
    client = Client(cache, B)
    await spin()
    assert repr(cache) == "ModelCache(0 resident, 1 loading, 1 evicting, 0 leases, 8/10 B)"
    assert [model.state for model in cache.snapshot()] == ["evicting", "loading"]
    assert cache.keys() == {B}
    assert loader.loads(B) == 0
    loader.finish("close", A)
    await spin()
    assert client.holds
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 8/10 B)"


async def test_request_for_a_closing_model_waits_and_loads_anew(
    observer: Recorder, clock: FakeClock
) -> None:
    """A model is never opened while its former self is being closed."""
    cache, loader = make(dict.fromkeys((A, B), sizes(5)), CacheLimits(9), observer, clock, "close")
    await load(cache, clock, A)
    other = Client(cache, B)
    await spin()
    again, late = Client(cache, A), Client(cache, A, timeout_s=1)
    await spin()
    assert loader.loads(A) == 1
    clock.advance(1)
    await spin()
    assert isinstance(late.error, OverloadedError)
    loader.finish("close", A)
    await spin()
    other.leave()
    await spin()
    loader.finish("close", B)
    await spin()
    assert again.holds
    assert loader.loads(A) == 2
    assert observer.outcomes == [(B, "missed"), (A, "waited"), (A, "missed")]


async def test_failing_close_is_logged_and_breaks_nobody(
    observer: Recorder, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The load that needed the room goes on."""
    cache, loader = make(dict.fromkeys((A, B), sizes(8)), CacheLimits(10), observer, clock, "close")
    await load(cache, clock, A)
    client = Client(cache, B)
    await spin()
    loader.finish("close", A, RuntimeError("driver gone"))
    await spin()
    assert client.holds
    assert "closing model a@1 failed" in caplog.text
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 8/10 B)"


async def test_model_in_use_is_not_evicted(observer: Recorder, clock: FakeClock) -> None:
    """Eviction takes another one, or the load waits until the lease ends."""
    cache, loader = make(dict.fromkeys((A, B, C, D), sizes(5)), CacheLimits(10), observer, clock)
    first = Client(cache, A)
    await spin()
    await load(cache, clock, B)
    second = Client(cache, C)
    await spin()
    assert observer.evictions == [(B, "budget")], "not A, although it was used before B"
    third = Client(cache, D)
    await spin()
    assert not third.holds
    first.leave()
    await spin()
    assert third.holds
    assert second.holds
    assert observer.evictions == [(B, "budget"), (A, "budget")]
    assert loader.wrongs == []


async def test_no_room_in_time_is_an_overload(observer: Recorder, clock: FakeClock) -> None:
    """A 503 with Retry-After; nothing was harmed and nothing remains."""
    cache, loader = make(dict.fromkeys((A, B), sizes(8)), CacheLimits(10), observer, clock)
    holder = Client(cache, A)
    await spin()
    client = Client(cache, B, timeout_s=5)
    await spin()
    clock.advance(5)
    await spin()
    assert isinstance(client.error, OverloadedError)
    assert client.error.retry_after_s is not None
    assert holder.holds
    assert loader.loads(B) == 0
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 8/10 B)"
    assert observer.keys == {A}
    async with cache.lease(A, timeout_s=0) as lease:
        assert not lease.cold


async def test_pinned_model_is_never_evicted_and_blocks_at_once(
    observer: Recorder, clock: FakeClock
) -> None:
    """What only pins keep out is refused without waiting, even while others are in use."""
    limits = CacheLimits(10, pinned=frozenset({A, E}))
    models = {A: sizes(5), B: sizes(5), C: sizes(5), D: sizes(6)}
    cache, _ = make(models, limits, observer, clock)
    await load(cache, clock, A, B)
    await load(cache, clock, C)
    assert cache.keys() == {A, C}
    Client(cache, C)
    client = Client(cache, D)
    await spin()
    assert isinstance(client.error, OverloadedError)
    assert "pinned" in client.error.detail
    assert cache.keys() == observer.keys == {A, C}


async def test_estimate_over_the_whole_budget_is_refused_after_prepare(
    observer: Recorder, clock: FakeClock
) -> None:
    """Nothing is evicted or opened for it."""
    cache, loader = make({A: sizes(5), B: sizes(11)}, CacheLimits(10), observer, clock)
    await load(cache, clock, A)
    with pytest.raises(ModelExceedsBudgetError):
        await cache.load(B, timeout_s=60)
    assert loader.calls[2:] == ["prepare b"]
    assert cache.keys() == {A}


async def test_measured_size_corrects_the_ledger(observer: Recorder, clock: FakeClock) -> None:
    """What the load really took counts, be it less or more."""
    models = {A: sizes(5, measured=3), B: sizes(4, measured=6)}
    cache, loader = make(models, CacheLimits(10), observer, clock, "open")
    Client(cache, A)
    await spin()
    assert cache.used_bytes == 5
    loader.finish("open", A)
    await spin()
    assert cache.used_bytes == 3
    Client(cache, B)
    await spin()
    loader.finish("open", B)
    await spin()
    assert cache.used_bytes == 9


async def test_larger_than_estimated_evicts_more(observer: Recorder, clock: FakeClock) -> None:
    """The new model is in memory already, so idle ones go for it."""
    models = {A: sizes(5), B: sizes(4, measured=6)}
    cache, _ = make(models, CacheLimits(10), observer, clock)
    await load(cache, clock, A, B)
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 6/10 B)"
    assert observer.evictions == [(A, "budget")]


async def test_larger_than_estimated_is_closed_where_leases_are_in_the_way(
    observer: Recorder, clock: FakeClock
) -> None:
    """The client gets a 503; with its measure known, the next load waits for enough room."""
    models = {A: sizes(5), B: sizes(4, measured=6)}
    cache, loader = make(models, CacheLimits(10), observer, clock)
    holder = Client(cache, A)
    await spin()
    with pytest.raises(OverloadedError):
        await cache.load(B, timeout_s=60)
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 5/10 B)"
    assert loader.opened[-1].closed
    assert observer.evictions == []
    again = Client(cache, B)
    await spin()
    assert loader.loads(B) == 1
    holder.leave()
    await spin()
    assert again.holds


async def test_measured_over_the_budget_is_closed_and_remembered(
    observer: Recorder, clock: FakeClock
) -> None:
    """It is refused at once from then on, before any load or eviction, until the budget grows."""
    models = {A: sizes(5), B: sizes(4, measured=11)}
    cache, loader = make(models, CacheLimits(10), observer, clock)
    await load(cache, clock, A)
    with pytest.raises(ModelExceedsBudgetError):
        await cache.load(B, timeout_s=60)
    await spin()
    assert cache.keys() == {A}
    calls = list(loader.calls)
    with pytest.raises(ModelExceedsBudgetError):
        await cache.load(B, timeout_s=60)
    assert loader.calls == calls
    cache.reconfigure(CacheLimits(11))
    assert await cache.load(B, timeout_s=60)


async def test_memory_that_is_taken_goes_before_room_that_is_promised(
    observer: Recorder, clock: FakeClock
) -> None:
    """A model that turned out larger stays; the load that was promised the room waits again."""
    models = {A: sizes(4), B: sizes(3, measured=6), C: sizes(6)}
    cache, loader = make(models, CacheLimits(10), observer, clock, "open", "close")
    loader.by_hand.discard("open")
    await load(cache, clock, A)
    loader.by_hand.add("open")
    first = Client(cache, B)
    await spin()
    second = Client(cache, C)
    await spin()
    loader.finish("open", B)
    await spin()
    assert first.holds
    loader.finish("close", A)
    await spin()
    assert loader.loads(C) == 0
    first.leave()
    await spin()
    loader.finish("close", B)
    await spin()
    loader.finish("open", C)
    await spin()
    assert second.holds
