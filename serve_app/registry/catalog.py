"""The registry: which models exist, found by scanning the places where they lie."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from serve_app.registry.folder import FolderScanner
from serve_app.registry.official import OfficialScanner
from serve_app.registry.snapshot import Snapshot
from serve_app.settings import AppArgs
from serve_app.types import ModelSpec

logger = logging.getLogger(__name__)

_MIN_MISS_INTERVAL_S = 0.25
"""However many unknown names are asked for, the disk is scanned at most so often."""

_REFRESH_SHARE = 20
_MISS_SHARE = 4
"""A slow scan is repeated less often: it takes 1/20 of the time, 1/4 under a flood of misses."""


class Scanner(Protocol):
    """A place where models are found; `str()` of it names it in the log."""

    def scan(self) -> Sequence[ModelSpec]:
        """Return the models that are there now; may block."""


class Registry:
    """Which models exist: `refresh` scans for them, `snapshot` answers from memory.

    `AsyncRegistry` keeps it fresh under requests. The first scanner that knows a name decides
    what the bare name means.
    """

    def __init__(
        self,
        *scanners: Scanner,
        refresh_interval_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scanners = scanners
        self._refresh_interval_s = refresh_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._found: list[Sequence[ModelSpec]] = [() for _ in scanners]
        self._failures: list[str | None] = [None for _ in scanners]
        self._scanned_at: float | None = None
        self._scan_took_s = 0.0
        self.snapshot = Snapshot(())
        """What the last scan found; reading it never blocks."""

    @classmethod
    def from_settings(cls, args: AppArgs) -> Self:
        """Return the registry of the configured folder and official models."""
        return cls(
            FolderScanner(args.repository),
            OfficialScanner(args.official_models, url=args.official_url),
        )

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
        """Run every scanner; one that fails keeps what it had, and the log tells once."""
        with self._lock:
            started = self._clock()
            for index, scanner in enumerate(self._scanners):
                self._scan(index, scanner)
            self.snapshot = Snapshot(self._found)
            self._scanned_at = self._clock()
            self._scan_took_s = self._scanned_at - started

    async def refresh_now(self) -> None:
        """Run every scanner without blocking the event loop."""
        await asyncio.to_thread(self.refresh)

    def _scan(self, index: int, scanner: Scanner) -> None:
        failure = None
        try:
            self._found[index] = scanner.scan()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure is not None and failure != self._failures[index]:
            logger.warning("the %s cannot be read, its last state is kept: %s", scanner, failure)
        self._failures[index] = failure
