"""Has everything that the registry knows prepared, beside the requests."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from serve_app.registry.live import AsyncRegistry
from serve_app.types import ModelSpec

logger = logging.getLogger(__name__)


class Wanted(Protocol):
    """What prepares; see serve_app.loading.preparer."""

    def wanted(self, specs: Iterable[ModelSpec]) -> None:
        """All versions that there are now."""


async def follow(registry: AsyncRegistry, preparer: Wanted, *, interval_s: float = 5.0) -> None:
    """Tell the preparer of every change in the registry, for ever."""
    known: tuple[ModelSpec, ...] | None = None
    while True:
        try:
            specs = await registry.list()
            if specs != known:
                known = specs
                preparer.wanted(specs)
        except Exception:
            logger.exception("the registry cannot be followed; trying again")
        await asyncio.sleep(interval_s)
