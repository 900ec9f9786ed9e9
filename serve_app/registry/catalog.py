"""The registry: which models exist, looked up in memory and kept fresh by scanning the sources."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from serve_app.errors import ModelNotFoundError
from serve_app.registry.folder import FolderSource
from serve_app.registry.official import OfficialSource
from serve_app.registry.snapshot import Snapshot
from serve_app.settings import AppArgs
from serve_app.types import ModelKey, ModelRef, ModelSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MIN_MISS_INTERVAL_S = 0.25
"""However many unknown names are asked for, the disk is scanned at most so often."""

_REFRESH_SHARE = 20
_MISS_SHARE = 4
"""A slow scan is repeated less often: it takes 1/20 of the time, 1/4 under a flood of misses."""


class Source(Protocol):
    """A place where models are found; `str()` of it names it in the log."""

    def scan(self) -> Sequence[ModelSpec]:
        """Return the models that are there now; may block."""


class Registry:
    """Which models exist, for threads: a lookup may scan when it finds nothing or old news.

    On an event loop, use `AsyncRegistry`. The first source that knows a name decides what the
    bare name means.
    """

    def __init__(
        self,
        *sources: Source,
        refresh_interval_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._refresh_interval_s = refresh_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._found: list[Sequence[ModelSpec]] = [() for _ in sources]
        self._failures: list[str | None] = [None for _ in sources]
        self._scanned_at: float | None = None
        self._scan_took_s = 0.0
        self.snapshot = Snapshot(())
        """What the last scan found; reading it never blocks."""

    @classmethod
    def from_settings(cls, args: AppArgs) -> Self:
        """Return the registry of the configured folder and official models."""
        return cls(
            FolderSource(args.repository),
            OfficialSource(args.official_models, url=args.official_url),
        )

    def resolve(self, ref: ModelRef) -> ModelKey:
        """Return the version that `ref` means; raise ModelNotFoundError when it does not exist."""
        if self.age_s > self.refresh_interval_s:
            self.refresh()
        return self._look_up(lambda: self.snapshot.resolve(ref))

    def spec(self, key: ModelKey) -> ModelSpec:
        """Return the entry of `key`; raise ModelNotFoundError when it does not exist."""
        return self._look_up(lambda: self.snapshot.spec(key))

    def list(self) -> tuple[ModelSpec, ...]:
        """Return every entry, sorted by name, then version from the lowest to the highest."""
        if self.age_s > self.refresh_interval_s:
            self.refresh()
        return self.snapshot.specs

    def _look_up(self, find: Callable[[], T]) -> T:
        try:
            return find()
        except ModelNotFoundError:
            if self.age_s < self.miss_interval_s:
                raise
        self.refresh()
        return find()

    @property
    def age_s(self) -> float:
        """Seconds since the last scan; infinite before the first."""
        return float("inf") if self._scanned_at is None else self._clock() - self._scanned_at

    @property
    def refresh_interval_s(self) -> float:
        """The age from which the snapshot is out of date."""
        return max(self._refresh_interval_s, _REFRESH_SHARE * self._scan_took_s)

    @property
    def miss_interval_s(self) -> float:
        """The age from which an unknown name is worth another scan."""
        return max(_MIN_MISS_INTERVAL_S, _MISS_SHARE * self._scan_took_s)

    def refresh(self) -> None:
        """Scan every source; one that fails keeps what it had, and the log tells once."""
        with self._lock:
            started = self._clock()
            for index, source in enumerate(self._sources):
                self._scan(index, source)
            self.snapshot = Snapshot(self._found)
            self._scanned_at = self._clock()
            self._scan_took_s = self._scanned_at - started

    async def refresh_now(self) -> None:
        """Scan every source without blocking the event loop."""
        await asyncio.to_thread(self.refresh)

    def _scan(self, index: int, source: Source) -> None:
        failure = None
        try:
            self._found[index] = source.scan()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure is not None and failure != self._failures[index]:
            logger.warning("the %s cannot be read, its last state is kept: %s", source, failure)
        self._failures[index] = failure
