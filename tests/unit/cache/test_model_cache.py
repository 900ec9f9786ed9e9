"""Leases and loads: one load for all who ask, an error for each, no trace of a failure."""

import asyncio

import pytest

from serve_app.cache import CacheLimits, ModelCache, state
from serve_app.errors import (
    DeadlineExceededError,
    ModelBrokenError,
    ModelNotFoundError,
    OverloadedError,
    ReplicaFailingError,
)
from tests.unit.cache.fakes import (
    A,
    B,
    C,
    Client,
    D,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    Recorder,
    sizes,
    spin,
)

Cache = ModelCache[FakePrepared, FakeModel]


def make(*by_hand: str, loads: int = 2, prepares: int = 2) -> tuple[Cache, FakeLoader, Recorder]:
    """Return a cache with room for everything, its loader and its observer."""
    loader = FakeLoader({key: sizes(10) for key in (A, B, C, D)}, *by_hand)
    observer = Recorder()
    limits = CacheLimits(2**20 * 100)
    cache: Cache = ModelCache(
        loader,
        limits=limits,
        observer=observer,
        max_concurrent_loads=loads,
        max_concurrent_prepares=prepares,
    )
    return cache, loader, observer


async def test_first_request_loads_and_the_next_one_hits() -> None:
    """The first lease is cold, the second is not, and the model stays."""
    cache, loader, observer = make()
    async with cache.lease(A, timeout_s=60) as lease:
        assert lease.cold
        assert lease.load_s is not None
        assert lease.key == lease.model.key == A
        assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 0/100 MiB)"
    async with cache.lease(A, timeout_s=60) as lease:
        assert not lease.cold
        assert lease.load_s is None
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 0/100 MiB)"
    assert observer.outcomes == [(A, "missed"), (A, "hit")]
    assert loader.calls == ["prepare a", "open a"]


async def test_fifty_first_requests_make_one_load() -> None:
    """All who ask while a model loads get that one model."""
    cache, loader, observer = make("open")
    clients = [Client(cache, A) for _ in range(50)]
    await spin()
    assert repr(cache) == "ModelCache(0 resident, 1 loading, 0 leases, 0/100 MiB)"
    loader.finish("open", A)
    await spin()
    assert {client.lease.model for client in clients if client.lease} == set(loader.opened)
    assert all(client.lease and client.lease.cold for client in clients)
    assert len(loader.opened) == 1
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 50 leases, 0/100 MiB)"
    assert [outcome for _, outcome in observer.outcomes] == ["missed"] + ["waited"] * 49
    for client in clients:
        client.leave()
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 0/100 MiB)"


async def test_different_models_load_side_by_side_in_the_order_of_asking() -> None:
    """As many loads run as are allowed; the others have their turn first come, first served."""
    cache, loader, _ = make("prepare", "open")
    for key in (A, B, C, D):
        Client(cache, key)
    await spin()
    assert loader.calls == ["prepare a", "prepare b"]
    loader.finish("prepare", B)
    await spin()
    assert set(loader.calls[2:]) == {"open b", "prepare c"}
    loader.finish("prepare", C)
    await spin()
    assert set(loader.calls[4:]) == {"open c", "prepare d"}
    loader.finish("prepare", D)
    await spin()
    assert loader.calls[6:] == [], "two are open already, and a fetch takes as long as it takes"
    loader.finish("open", C)
    await spin()
    assert loader.calls[6:] == ["open d"]


async def test_hits_do_not_wait_for_loads() -> None:
    """A resident model is leased at once while another one loads."""
    cache, loader, _ = make(loads=1)
    await cache.load(A, timeout_s=60)
    loader.by_hand.add("open")
    Client(cache, B)
    await spin()
    async with cache.lease(A, timeout_s=0) as lease:
        assert not lease.cold


async def test_each_waiter_gets_its_own_copy_of_the_error() -> None:
    """An error raised in two tasks would collect both tracebacks, so each raises its own."""
    cache, loader, observer = make("prepare")
    clients = [Client(cache, A) for _ in range(3)]
    await spin()
    loader.finish("prepare", A, ModelNotFoundError("no such model"))
    await spin()
    errors = [client.error for client in clients]
    assert len({id(error) for error in errors}) == 3
    assert all(isinstance(error, ModelNotFoundError) for error in errors)
    assert {str(error) for error in errors} == {"no such model"}
    assert [key for key, _ in observer.failures] == [A]


@pytest.mark.parametrize("kind", ["prepare", "open"])
async def test_failed_load_leaves_nothing_and_the_next_request_tries_again(kind: str) -> None:
    """No reservation, no key and no verdict remain of a load that failed."""
    cache, loader, observer = make(kind)
    client = Client(cache, A)
    await spin()
    loader.finish(kind, A, ModelBrokenError("corrupt"))
    await spin()
    assert isinstance(client.error, ModelBrokenError)
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/100 MiB)"
    assert cache.used_bytes == 0
    assert cache.keys() == observer.keys == frozenset()
    assert cache.snapshot() == ()
    loader.by_hand.clear()
    assert await cache.load(A, timeout_s=60)


async def test_unexpected_error_is_told_as_a_broken_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A defect of the loader becomes a 424 that names it, and a traceback in the log."""
    cache, loader, _ = make("open")
    client = Client(cache, A)
    await spin()
    loader.finish("open", A, RuntimeError("bad tensor"))
    await spin()
    assert isinstance(client.error, ModelBrokenError)
    assert "RuntimeError: bad tensor" in client.error.detail
    assert caplog.records[0].exc_info


async def test_cancelled_waiter_does_not_take_the_load_with_it() -> None:
    """A client that disconnects leaves the load to the others, even if it began it."""
    cache, loader, _ = make("open")
    first, second = Client(cache, A), Client(cache, A)
    await spin()
    first.task.cancel()
    await spin()
    loader.finish("open", A)
    await spin()
    assert first.task.cancelled()
    assert second.holds
    assert loader.loads(A) == 1
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 1 leases, 0/100 MiB)"


async def test_unwanted_load_that_is_opening_becomes_resident() -> None:
    """The work is nearly done, so it is kept for the next request; it may be evicted."""
    cache, loader, _ = make("open")
    client = Client(cache, A)
    await spin()
    client.task.cancel()
    await spin()
    loader.finish("open", A)
    await spin()
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 0/100 MiB)"


async def test_unwanted_load_that_is_preparing_ends_there() -> None:
    """The file is prepared for next time, but nothing is evicted or opened for nobody."""
    cache, loader, observer = make("prepare")
    client = Client(cache, A)
    await spin()
    client.task.cancel()
    await spin()
    loader.finish("prepare", A)
    await spin()
    assert loader.calls == ["prepare a"]
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/100 MiB)"
    assert observer.keys == frozenset()
    assert observer.failures == []


async def test_unwanted_load_that_has_no_turn_yet_is_dropped_at_once() -> None:
    """A queued load whose only client left is out of the line, and its key can be asked again."""
    cache, loader, observer = make("prepare", prepares=1)
    Client(cache, A)
    gone = Client(cache, B)
    await spin()
    gone.task.cancel()
    await spin()
    assert cache.keys() == observer.keys == {A}
    again = Client(cache, B)
    loader.by_hand.clear()
    loader.finish("prepare", A)
    await spin()
    assert again.holds


async def test_slow_load_is_a_missed_deadline_and_goes_on(clock: FakeClock) -> None:
    """The request that had too little time gets a 504; the one with more gets the model."""
    cache, loader, _ = make("open")
    hasty, patient = Client(cache, A, timeout_s=1), Client(cache, A, timeout_s=9)
    await spin()
    clock.advance(1)
    await spin()
    assert isinstance(hasty.error, DeadlineExceededError)
    loader.finish("open", A)
    await spin()
    assert patient.holds


async def test_no_turn_in_time_is_an_overload(clock: FakeClock) -> None:
    """A request whose load could not begin gets a 503 with Retry-After."""
    cache, _, _ = make("prepare", prepares=1)
    Client(cache, A)
    late = Client(cache, B, timeout_s=1)
    await spin()
    clock.advance(1)
    await spin()
    assert isinstance(late.error, OverloadedError)
    assert late.error.retry_after_s is not None


async def test_times_are_told(clock: FakeClock) -> None:
    """A lease tells the work of its load and its own wait; the observer hears of the phases."""
    loader = FakeLoader({A: sizes(1)}, "prepare", "open")
    observer = Recorder()
    cache: Cache = ModelCache(loader, limits=CacheLimits(10), observer=observer, clock=clock)
    client = Client(cache, A)
    await spin()
    clock.advance(2)
    loader.finish("prepare", A)
    await spin()
    clock.advance(3)
    joined = Client(cache, A)
    await spin()
    clock.advance(1)
    loader.finish("open", A)
    await spin()
    assert client.lease is not None
    assert joined.lease is not None
    assert (client.lease.load_s, client.lease.wait_s) == (6, 6)
    assert (joined.lease.load_s, joined.lease.wait_s) == (6, 1)
    assert observer.loads == [(A, 6, {"read": 0.5})]


async def test_snapshot_tells_states_leases_and_idle_time(clock: FakeClock) -> None:
    """What a replica reports of its models."""
    loader = FakeLoader({A: sizes(7, {"g": 3}), B: sizes(5)})
    limits = CacheLimits(100, pinned=frozenset({A}))
    cache: Cache = ModelCache(loader, limits=limits, clock=clock)
    await cache.load(A, timeout_s=60)
    clock.advance(4)
    loader.by_hand.add("open")
    Client(cache, B)
    await spin()
    resident, loading = cache.snapshot()
    assert (resident.key, resident.state, resident.bytes) == ("a@1", "resident", 7)
    assert (resident.leases, resident.pinned, resident.idle_s) == (0, True, 4)
    assert (loading.key, loading.state, loading.bytes, loading.leases) == ("b@1", "loading", 5, 0)
    assert (cache.used_bytes, cache.budget_bytes) == (15, 100)


async def test_error_under_a_lease_releases_it() -> None:
    """Whatever happens in the block, the lease ends with it, before anything else can run."""
    cache, _, _ = make()
    with pytest.raises(ZeroDivisionError):
        async with cache.lease(A, timeout_s=60):
            raise ZeroDivisionError
    assert repr(cache) == "ModelCache(1 resident, 0 loading, 0 leases, 0/100 MiB)"


async def test_hit_tells_no_change_and_asks_nothing_of_the_loop() -> None:
    """A hit is a few dictionary look-ups: no suspension, no scan, no `changed`."""
    cache, _, observer = make()
    await cache.load(A, timeout_s=60)
    changes = observer.changes
    ticks: list[int] = []
    asyncio.get_running_loop().call_soon(ticks.append, 1)
    async with cache.lease(A, timeout_s=60):
        assert ticks == []
    assert observer.changes == changes


async def test_at_least_one_load_must_be_allowed() -> None:
    """A cache that may not load anything is a mistake."""
    with pytest.raises(ValueError, match="max_concurrent_loads"):
        make(loads=0)
    with pytest.raises(ValueError, match="max_concurrent_prepares"):
        make(prepares=0)


async def test_aclose_cancels_loads_waits_for_leases_and_closes_all() -> None:
    """In the end nothing is open, nobody waits and no task is left."""
    cache, loader, observer = make("prepare", "open", "close", loads=3)
    loader.by_hand -= {"prepare", "open"}
    held = Client(cache, A)
    await spin()
    await cache.load(B, timeout_s=60)
    loader.by_hand |= {"open", "prepare"}
    opening = Client(cache, C)
    await spin()
    loader.finish("prepare", C)
    preparing = Client(cache, D)
    await spin()
    closing = asyncio.create_task(cache.aclose())
    await spin()
    assert isinstance(opening.error, OverloadedError)
    assert isinstance(preparing.error, ReplicaFailingError)
    loader.finish("close", B)
    await spin()
    assert not closing.done()
    held.leave()
    await spin()
    loader.finish("close", A)
    await closing
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/100 MiB)"
    assert cache.used_bytes == 0
    assert observer.evictions == [(B, "shutdown"), (A, "shutdown")]
    assert observer.keys == frozenset()
    assert loader.wrongs == []
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(ReplicaFailingError, match="shutting down"):
        await cache.load(A, timeout_s=60)
    await cache.aclose()


async def test_aclose_closes_what_a_deaf_loader_opens() -> None:
    """A loader that does not heed its cancellation leaks nothing."""

    class Deaf(FakeLoader):
        async def open(self, prepared: FakePrepared) -> FakeModel:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await super().open(prepared)
            raise AssertionError

    loader = Deaf({A: sizes(1)})
    cache: Cache = ModelCache(loader, limits=CacheLimits(10))
    client = Client(cache, A)
    await spin()
    closing = asyncio.create_task(cache.aclose())
    await spin()
    client.leave()
    await closing
    assert [model.closings for model in loader.opened] == [1]
    assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/10 B)"


async def test_measures_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of measured sizes is bounded, the oldest goes first."""
    monkeypatch.setattr(state, "_MEASURED_LIMIT", 2)
    cache, _, _ = make()
    for key in (A, B, A, C):
        await cache.unload(key, timeout_s=60)
        await cache.load(key, timeout_s=60)
    assert list(cache._state._measured) == [A, C]
