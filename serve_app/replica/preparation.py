"""Has everything that the registry knows prepared, beside the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from serve_app.registry.live import AsyncRegistry
from serve_app.types import ModelSpec

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
"""Asking makes the registry scan its folder, in every replica; a model that is opened before its
turn is prepared all the same."""


class Wanted(Protocol):
    """What prepares; see serve_app.loading.preparer."""

    def wanted(self, specs: Iterable[ModelSpec]) -> None:
        """All versions that there are now."""


async def follow(
    registry: AsyncRegistry,
    preparer: Wanted,
    *,
    interval_s: float = _INTERVAL_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Tell the preparer of all that there is at once, then of every change, for ever."""
    known: tuple[ModelSpec, ...] | None = None
    while True:
        try:
            specs = await registry.list(urgent=False)
            if specs is not known:  # comparing 10,000 would hold up the event loop
                known = specs
                preparer.wanted(specs)
        except Exception:
            logger.exception("the registry cannot be followed; trying again")
        await sleep(interval_s)
