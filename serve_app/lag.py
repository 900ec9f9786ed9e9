"""How long an event loop keeps others waiting: whatever blocks it wakes this late, too."""

import asyncio
import time
from collections.abc import Awaitable, Callable

INTERVAL_S = 0.02


async def watch(
    observe: Callable[[float], None],
    *,
    interval_s: float = INTERVAL_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sleep and tell by how much it woke late, for ever; to be cancelled.

    The loop's own timers are up to about a millisecond late when nothing blocks it.

    Args:
        observe: takes the delay in seconds, once for each interval; must not block
        interval_s: how long each sleep is meant to be, in seconds
        clock: seconds that never go backwards
        sleep: suspends for so many seconds
    """
    while True:
        due = clock() + interval_s
        await sleep(interval_s)
        observe(max(0.0, clock() - due))
