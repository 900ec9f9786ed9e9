"""The registry: which models exist, found by scanning the places where they lie."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol, Self

from serve_app.errors import ModelNotFoundError
from serve_app.registry.folder import FolderScanner
from serve_app.registry.official import OfficialScanner
from serve_app.registry.pace import Pace
from serve_app.registry.snapshot import Snapshot
from serve_app.settings import AppArgs
from serve_app.types import ModelKey, ModelSpec

logger = logging.getLogger(__name__)

_REFRESH_SHARE = 20
"""A slow scan is repeated less often: it takes at most 1/20 of the time."""


class Scanner(Protocol):
    """A place where models are found; `str()` of it names it in the log."""

    def scan(self) -> Iterable[ModelSpec]:
        """Return the models that are there now, best one by one as they are found; may block."""

    def scan_name(self, name: str) -> Sequence[ModelSpec]:
        """Return those of one name, quickly where there are many; may block, in any thread."""


class Registry:
    """Which models exist: `refresh` scans for them, `snapshot` answers from memory.

    `look` brings one name up to date, at a cost that does not grow with the number of models.

    `AsyncRegistry` keeps it fresh under requests. The first scanner that knows a name decides
    what the bare name means.
    """

    def __init__(
        self,
        *scanners: Scanner,
        refresh_interval_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        self._scanners = scanners
        self._refresh_interval_s = refresh_interval_s
        self._clock = clock
        self._pace = pace or Pace()
        self._scanning = threading.Lock()
        self._publishing = threading.Lock()
        self._found: list[Sequence[ModelSpec]] = [() for _ in scanners]
        self._failures: list[str | None] = [None for _ in scanners]
        self._changed: set[str] = set()  # names that looks brought up to date while a scan ran
        self._scanned_at: float | None = None
        self._scan_took_s = 0.0
        self.snapshot = Snapshot(())
        """What the last scan found; reading it never blocks."""

    @classmethod
    def from_settings(cls, args: AppArgs, *, cards: bool = True) -> Self:
        """Return the registry of the configured folder and official models.

        cards: whether what their authors say of the models is read
        """
        return cls(
            FolderScanner(args.repository, cards=cards),
            OfficialScanner(args.official_models, url=args.official_url),
        )

    @property
    def age_s(self) -> float:
        """Seconds since the last scan of all; infinite before the first."""
        return float("inf") if self._scanned_at is None else self._clock() - self._scanned_at

    @property
    def refresh_interval_s(self) -> float:
        """The age from which the snapshot is out of date."""
        return max(self._refresh_interval_s, _REFRESH_SHARE * self._scan_took_s)

    def file_of(self, key: ModelKey) -> Hashable:
        """Return something that differs once the file of `key` was replaced, as last seen.

        A file of the same size in the same place is taken for the same.
        """
        try:
            spec = self.snapshot.spec(key)
        except ModelNotFoundError:
            return None
        return spec.location, spec.size_bytes

    def refresh(self, *, gently: bool = False) -> None:
        """Run every scanner; one that fails keeps what it had, and the log tells once.

        gently: step back for whatever else this process does, until `hurry` is called
        """
        with self._scanning:
            started = self._clock()
            self._changed.clear()
            self._pace.begin(gently=gently)
            found = [self._scan(index, scanner) for index, scanner in enumerate(self._scanners)]
            with self._publishing:
                self._publish(self._newer(found))
            self._pace.end()
            self._scanned_at = self._clock()
            self._scan_took_s = max(0.0, self._scanned_at - started - self._pace.rested_s)

    def hurry(self) -> None:
        """Have the scan that runs, or else the next one, end as soon as it can."""
        self._pace.hurry()

    def look(self, name: str) -> None:
        """Bring one name up to date; where a scanner fails, all stays as it was."""
        try:
            found = [scanner.scan_name(name) for scanner in self._scanners]
        except Exception as error:
            logger.debug("no look at the models named %r: %s", name, error)
            return
        if Snapshot(found).of_name(name) == self.snapshot.of_name(name):
            return
        with self._publishing:
            self._changed.add(name)
            self._found = _with_name(self._found, name, found)
            self.snapshot = self.snapshot.with_name(name, found)

    async def refresh_now(self) -> None:
        """Run every scanner without blocking the event loop or slowing it down."""
        await asyncio.to_thread(self.refresh, gently=True)

    async def look_now(self, name: str) -> None:
        """Bring one name up to date without blocking the event loop."""
        await asyncio.to_thread(self.look, name)

    def _newer(self, found: list[Sequence[ModelSpec]]) -> list[Sequence[ModelSpec]]:
        """Return what a scan found, with what it may have passed by before it changed."""
        for name in self._changed:
            with suppress(Exception):
                new = [scanner.scan_name(name) for scanner in self._scanners]
                found = _with_name(found, name, new)
        return found

    def _publish(self, found: list[Sequence[ModelSpec]]) -> None:
        """Let the snapshot show what was found; where that is no news, it stays the same object."""
        if found != self._found:
            self._found = found
            self.snapshot = Snapshot(found)

    def _scan(self, index: int, scanner: Scanner) -> Sequence[ModelSpec]:
        """Return what a scanner finds, or what it had when it fails."""
        failure = None
        found = self._found[index]
        try:
            found = self._step_by_step(scanner.scan())
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure is not None and failure != self._failures[index]:
            logger.warning("the %s cannot be read, its last state is kept: %s", scanner, failure)
        self._failures[index] = failure
        return found

    def _step_by_step(self, specs: Iterable[ModelSpec]) -> list[ModelSpec]:
        found = []
        for spec in specs:
            found.append(spec)
            self._pace.step()
        return found


def _with_name(
    found: Sequence[Sequence[ModelSpec]], name: str, of_name: Sequence[Sequence[ModelSpec]]
) -> list[Sequence[ModelSpec]]:
    """Return what each source has, but of one name only `of_name`."""
    return [
        [*(spec for spec in known if spec.key.name != name), *new]
        for known, new in zip(found, of_name, strict=True)
    ]
