"""The registry for an event loop: lookups in memory, scans in a thread."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from serve_app.errors import ModelNotFoundError
from serve_app.registry.catalog import Registry
from serve_app.types import ModelKey, ModelRef, ModelSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AsyncRegistry:
    """A registry whose scans run one at a time, shared by all who wait for one.

    While requests keep coming, none of them waits for a scan: one that finds the snapshot out of
    date starts the next scan and answers from the present one. After a pause the first one waits.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._scan: asyncio.Task[None] | None = None

    @property
    def scanning(self) -> bool:
        """Whether a scan runs now."""
        return self._scan is not None

    async def resolve(self, ref: ModelRef) -> ModelKey:
        """Return the version that `ref` means; raise ModelNotFoundError when it does not exist."""
        await self._freshen()
        return await self._look_up(lambda: self._registry.snapshot.resolve(ref))

    async def spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key`; raise ModelNotFoundError when it does not exist."""
        return await self._look_up(lambda: self._registry.snapshot.spec(key))

    async def current_spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key` as it is now: for a loader, whose keys exist and are few.

        Raises:
            ModelNotFoundError: it does not exist any more
        """
        await self._freshen()
        try:
            return self._registry.snapshot.spec(key)
        except ModelNotFoundError:
            await self._refresh()
            return self._registry.snapshot.spec(key)

    async def list(self) -> tuple[ModelSpec, ...]:
        """Return every entry, sorted by name, then version from the lowest to the highest."""
        await self._freshen()
        return self._registry.snapshot.specs

    async def _look_up(self, find: Callable[[], T]) -> T:
        try:
            return find()
        except ModelNotFoundError:
            if not self.scanning and self._registry.age_s < self._registry.miss_interval_s:
                raise
        await self._refresh()
        return find()

    async def _freshen(self) -> None:
        interval_s = self._registry.refresh_interval_s
        if self._registry.age_s > 2 * interval_s:
            await self._refresh()
        elif self._registry.age_s > interval_s:
            self._start_scan()

    async def _refresh(self) -> None:
        # Shielded: a request that is cancelled must not end the scan that others wait for.
        await asyncio.shield(self._start_scan())

    def _start_scan(self) -> asyncio.Task[None]:
        if self._scan is None:
            self._scan = asyncio.create_task(self._registry.refresh_now())
            self._scan.add_done_callback(self._scanned)
        return self._scan

    def _scanned(self, scan: asyncio.Task[None]) -> None:
        self._scan = None
        if not scan.cancelled() and scan.exception() is not None:
            logger.error("the registry could not be refreshed", exc_info=scan.exception())
