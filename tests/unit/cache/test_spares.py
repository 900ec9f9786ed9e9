"""Loads ahead of requests: they count as none, and second copies push out nothing in use."""

import asyncio

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.errors import OverloadedError
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
    Sizes,
    sizes,
    spin,
)

Cache = ModelCache[FakePrepared, FakeModel]

_SMALL = sizes(4)


def _make(
    clock: FakeClock, budget: int, *by_hand: str, a: Sizes = _SMALL
) -> tuple[Cache, FakeLoader, Recorder]:
    models = {**dict.fromkeys((B, C, D), _SMALL), A: a}
    loader, observer = FakeLoader(models, *by_hand), Recorder()
    limits = CacheLimits(budget)
    return ModelCache(loader, limits=limits, observer=observer, clock=clock), loader, observer


async def test_a_load_ahead_of_requests_is_no_request(clock: FakeClock) -> None:
    """Neither the first one nor one that finds the model there; a lease is."""
    cache, _, observer = _make(clock, 8)
    assert await cache.load(A, timeout_s=60)
    assert not await cache.load(A, timeout_s=60)
    assert observer.outcomes == []
    async with cache.lease(A, timeout_s=60):
        pass
    assert observer.outcomes == [(A, "hit")]


async def test_a_load_ahead_of_requests_that_waits_is_no_request(clock: FakeClock) -> None:
    """While a lease keeps its former self from closing."""
    cache, loader, observer = _make(clock, 4, "close")
    await cache.load(A, timeout_s=60)
    other = Client(cache, B)
    await spin()
    with pytest.raises(OverloadedError, match="being evicted"):
        await cache.load(A, timeout_s=0)
    assert observer.outcomes == [(B, "missed")]
    loader.finish("close", A)
    await spin()
    assert other.holds


async def test_a_second_copy_evicts_only_what_nobody_asked_for(clock: FakeClock) -> None:
    """Whatever the policy would have go first; else it is refused at once, and nothing goes."""
    cache, _, observer = _make(clock, 8)
    await cache.load(A, timeout_s=60)
    clock.advance(31)
    await cache.load(B, timeout_s=60)
    clock.advance(30)
    with pytest.raises(OverloadedError, match="does not fit beside the models in use"):
        await cache.load(C, timeout_s=60, evicts_after_s=62)
    assert cache.keys() == {A, B}
    assert await cache.load(C, timeout_s=60, evicts_after_s=60)
    assert observer.evictions == [(A, "budget")]
    with pytest.raises(OverloadedError):
        await cache.load(D, timeout_s=60, evicts_after_s=60)
    assert cache.keys() == {B, C}


async def test_a_second_copy_takes_no_model_in_use(clock: FakeClock) -> None:
    """However long its lease is, and however long the load would wait."""
    cache, _, observer = _make(clock, 4)
    client = Client(cache, A)
    await spin()
    clock.advance(1000)
    with pytest.raises(OverloadedError):
        await cache.load(B, timeout_s=60, evicts_after_s=60)
    assert client.holds
    assert cache.keys() == {A}
    assert observer.evictions == []


async def test_a_second_copy_that_turns_out_larger_goes_itself(clock: FakeClock) -> None:
    """Its estimate fitted; nothing that is in use pays for the rest."""
    cache, _, _ = _make(clock, 10, a=sizes(4, measured=8))
    await cache.load(B, timeout_s=60)
    with pytest.raises(OverloadedError):
        await cache.load(A, timeout_s=60, evicts_after_s=60)
    assert cache.keys() == {B}
    await cache.load(A, timeout_s=60)
    assert cache.keys() == {A}


async def test_a_request_that_joins_makes_it_a_load_like_any_other(clock: FakeClock) -> None:
    """Somebody waits for it now."""
    cache, loader, observer = _make(clock, 4)
    await cache.load(B, timeout_s=60)
    loader.by_hand.add("prepare")
    spare = asyncio.create_task(cache.load(A, timeout_s=60, evicts_after_s=60))
    await spin()
    client = Client(cache, A)
    await spin()
    loader.finish("prepare", A)
    assert await spare
    assert client.holds
    assert observer.evictions == [(B, "budget")]
