"""The lag of an event loop: how late it wakes, and that what blocks it is seen."""

import asyncio
import contextlib
import time

import pytest

from serve_app import lag


async def test_each_sleep_is_told_by_how_late_it_ended() -> None:
    """Only what lies beyond the interval counts, and a clock that stands still is no lag."""
    now, seen = 100.0, list[float]()
    lengths = iter([0.02, 0.07, 0.019])

    async def sleep(wanted_s: float) -> None:
        nonlocal now
        assert wanted_s == 0.02
        now += next(lengths)

    with pytest.raises(RuntimeError):  # there is no fourth sleep; a coroutine cannot StopIteration
        await lag.watch(seen.append, interval_s=0.02, clock=lambda: now, sleep=sleep)
    assert seen == [pytest.approx(0.0, abs=1e-9), pytest.approx(0.05), 0.0]


async def test_a_blocked_loop_is_seen_and_the_watch_can_be_cancelled() -> None:
    """On the real clock; how late beyond the block the machine decides."""
    told: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.create_task(lag.watch(told.put_nowait, interval_s=0.001))
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251 - this is what it is there to find
    assert await told.get() >= 0.045
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert watching.cancelled()
