"""A clock that stands still, for the cache and for the event loop's timeouts alike."""

import asyncio

import pytest

from tests.unit.cache.fakes import FakeClock


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Return the clock; a test that waits must `spin`, for no time passes by itself."""
    clock = FakeClock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock
