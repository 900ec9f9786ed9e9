"""The registry for an event loop: lookups in memory, scans in a thread."""

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from serve_app.errors import ModelNotFoundError, SourceUnavailableError
from serve_app.registry.catalog import Registry
from serve_app.types import ModelKey, ModelRef, ModelSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOKS = 4
"""At the same time: on a disk that hangs, a flood of unknown names takes no more threads."""
_MOST_LOOKS, _MOST_NEWS = 256, 64
"""That run or wait while the disk hangs for ever; fewer for names that are known anyway."""
_SCAN_S = 5.0
"""How long a scan may have run before whoever wants a list takes the one that there is."""
_NEWS_S = 0.5
"""How long whoever asks for a known name waits for news of it."""


class AsyncRegistry:
    """A registry whose scans run one at a time, shared by all who wait for one.

    No lookup waits for a scan, which takes the longer the more models there are: one that finds
    the snapshot out of date starts the next scan and answers from the present one. What must not
    be out of date - a name that is not known, any name after a pause - is looked at by itself.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._scan: asyncio.Task[None] | None = None
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(_LOOKS)
        # Of its own: where the disk hangs, these threads do, and nobody else's.
        self._threads = ThreadPoolExecutor(_LOOKS + 1, thread_name_prefix="registry")
        self._begun: dict[str, float] = {}  # the looks that run, and since when
        self._scan_begun = 0.0

    @property
    def scanning(self) -> bool:
        """Whether a scan runs now."""
        return self._scan is not None

    def begin(self) -> None:
        """Start the first scan before anybody asks; returns at once."""
        self._start_scan()

    async def resolve(self, ref: ModelRef) -> ModelKey:
        """Return the version that `ref` means.

        A name that is known is answered from memory where the disk hangs.

        Raises:
            ModelNotFoundError: it does not exist
            SourceUnavailableError: nobody knows, and too many wait to find out
        """
        if self._is_old() and self._registry.snapshot.versions(ref.name):
            await self._wait_for_news(ref.name)
        return await self._look_up(ref.name, lambda: self._registry.snapshot.resolve(ref))

    async def spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key`; raise ModelNotFoundError when it does not exist."""
        return await self._look_up(key.name, lambda: self._registry.snapshot.spec(key))

    async def current_spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key` as it is now, for a loader.

        Raises:
            ModelNotFoundError: it does not exist any more
        """
        await self._look(key.name)
        return self._registry.snapshot.spec(key)

    def look_soon(self, name: str) -> None:
        """Have one name brought up to date beside; what is known answers meanwhile."""
        self._start_look(name)

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a name from the lowest to the highest, as last seen."""
        return self._registry.snapshot.versions(name)

    async def list(self, *, urgent: bool = True) -> tuple[ModelSpec, ...]:
        """Return every entry, sorted by name, then version from the lowest to the highest.

        The same tuple again as long as nothing has changed, and where the disk hangs.

        urgent: whether somebody waits: then a scan that is needed runs at full speed
        """
        if self._is_old():
            await self._refresh(urgent=urgent)
        return self._registry.snapshot.specs

    async def _look_up(self, name: str, find: Callable[[], T]) -> T:
        try:
            return find()
        except ModelNotFoundError:
            await self._look(name)
        try:
            return find()
        except ModelNotFoundError:
            if self._registry.age_s < math.inf:
                raise
        await self._refresh()  # so that the message can tell what there is
        return find()

    def _is_old(self) -> bool:
        """Start a scan where one is due; whether what is known is too old to be acted upon."""
        interval_s, age_s = self._registry.refresh_interval_s, self._registry.age_s
        if age_s > interval_s:
            self._start_scan()
        return age_s > 2 * interval_s

    async def _refresh(self, *, urgent: bool = True) -> None:
        scan = self._start_scan()
        if urgent:
            self._registry.hurry()
        # Neither a request that is cancelled nor the limit ends the scan that others wait for.
        limit_s = None
        if self._registry.age_s < math.inf:
            limit_s = max(0.0, self._scan_begun + _SCAN_S - asyncio.get_running_loop().time())
        await asyncio.wait({scan}, timeout=limit_s)

    async def _look(self, name: str) -> None:
        """Bring one name up to date; all who ask for it meanwhile share the look."""
        if self._hangs and name not in self._looks and len(self._looks) >= _MOST_LOOKS:
            raise SourceUnavailableError("the model repository does not answer: try again later")
        await asyncio.shield(self._start_look(name))

    async def _wait_for_news(self, name: str) -> None:
        """Bring one name up to date; go on without if that is not soon done, as on a hanging disk.

        While another look hangs this one is not waited for: it may hang as well, or be done soon.
        """
        if name in self._looks or len(self._looks) < _MOST_NEWS:
            look = self._start_look(name)
            if not self._hangs:
                await asyncio.wait({look}, timeout=_NEWS_S)

    @property
    def _hangs(self) -> bool:
        """Whether a look takes longer than anybody waits for news."""
        too_long_ago = asyncio.get_running_loop().time() - _NEWS_S
        return any(begun <= too_long_ago for begun in self._begun.values())

    def _start_look(self, name: str) -> asyncio.Task[None]:
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = asyncio.create_task(self._look_in_turn(name))
            look.add_done_callback(lambda _: self._looks.pop(name))
        return look

    async def _look_in_turn(self, name: str) -> None:
        async with self._room:
            self._begun[name] = asyncio.get_running_loop().time()
            try:
                await self._in_thread(partial(self._registry.look, name))
            finally:
                del self._begun[name]

    def _start_scan(self) -> asyncio.Task[None]:
        if self._scan is None:
            self._scan_begun = asyncio.get_running_loop().time()
            scan = self._in_thread(partial(self._registry.refresh, gently=True))
            self._scan = asyncio.create_task(scan)
            self._scan.add_done_callback(self._scanned)
        return self._scan

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _scanned(self, scan: asyncio.Task[None]) -> None:
        self._scan = None
        if not scan.cancelled() and scan.exception() is not None:
            logger.error("the registry could not be refreshed", exc_info=scan.exception())
