"""Cancellation at every suspension point leaves the cache right.

In the spirit of httpcore's tests of the same name: each case is run again and again, cancelled one
turn of the event loop later each time, until it ends before the cancellation.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve_app.cache import CacheLimits, ModelCache
from tests.unit.cache.fakes import (
    A,
    B,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    Recorder,
    sizes,
    spin,
    used_bytes,
)

Cache = ModelCache[FakePrepared, FakeModel]
Case = Callable[[Cache], Awaitable[object]]


async def cold_lease(cache: Cache) -> None:
    """Lease B, for which A must go, and keep it for a few turns."""
    async with cache.lease(B, timeout_s=60):
        await spin(3)


async def hit(cache: Cache) -> None:
    """Lease A, which is resident."""
    async with cache.lease(A, timeout_s=60):
        await spin(3)


async def unload(cache: Cache) -> None:
    """Unload A."""
    await cache.unload(A, timeout_s=60)


async def unload_and_load(cache: Cache) -> None:
    """Load A anew while it is being closed."""
    closing = asyncio.create_task(cache.unload(A, timeout_s=60))
    await asyncio.sleep(0)
    try:
        await cache.load(A, timeout_s=60)
    finally:
        closing.cancel()


async def aclose(cache: Cache) -> None:
    """Close everything while a load is on its way."""
    loading = asyncio.create_task(cold_lease(cache))
    try:
        await spin(4)
        await cache.aclose()
    finally:
        loading.cancel()


def check(cache: Cache, loader: FakeLoader, observer: Recorder) -> None:
    """Check what must be true when nothing is going on."""
    open_models = [model for model in loader.opened if not model.closed]
    assert len(open_models) <= 1
    assert cache.keys() == observer.keys == {model.key for model in open_models}
    held = used_bytes(open_models)
    assert cache.used_bytes == held
    expected = f"{len(open_models)} resident, 0 loading, 0 leases, {held}/10 B"
    assert repr(cache) == f"ModelCache({expected})"
    assert loader.wrongs == []
    assert loader.pending == []
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("case", [cold_lease, hit, unload, unload_and_load, aclose])
async def test_cancelled_at_each_turn(case: Case, clock: FakeClock) -> None:
    """Nothing leaks and nothing is closed twice, wherever the cancellation falls."""
    for turns in range(100):
        loader, observer = FakeLoader(dict.fromkeys((A, B), sizes(8))), Recorder()
        cache: Cache = ModelCache(loader, limits=CacheLimits(10), observer=observer, clock=clock)
        await cache.load(A, timeout_s=60)
        task = asyncio.ensure_future(case(cache))
        await spin(turns)
        finished = task.done()
        task.cancel()
        await spin()
        check(cache, loader, observer)
        if not cache._state.ending:  # it must still work
            await cache.load(B, timeout_s=60)
            await spin()
            check(cache, loader, observer)
        await cache.aclose()
        assert cache.used_bytes == 0
        assert repr(cache) == "ModelCache(0 resident, 0 loading, 0 leases, 0/10 B)"
        if finished:
            return
    pytest.fail("the case never ended")


async def test_other_requests_survive_every_cancellation(clock: FakeClock) -> None:
    """A second request for the same model is served wherever the first one is cancelled."""
    for turns in range(20):
        loader = FakeLoader(dict.fromkeys((A, B), sizes(8)))
        cache: Cache = ModelCache(loader, limits=CacheLimits(10), clock=clock)
        await cache.load(A, timeout_s=60)
        first = asyncio.create_task(cold_lease(cache))
        second = asyncio.create_task(cache.load(B, timeout_s=60))
        await spin(turns)
        first.cancel()
        await spin()
        assert second.result()
        assert loader.loads(B) == 1
        await cache.aclose()
