"""The registry: which models exist, found by scanning the places where they lie."""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
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
        self._looked: set[str] = set()  # names that were looked at while a scan ran
        self._scans = 0  # how many have read all that they read
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
            self._pace.begin(gently=gently)
            found = [self._scan(index, scanner) for index, scanner in enumerate(self._scanners)]
            # What follows grows with what was looked at, which makes no scan any slower.
            self._scan_took_s = max(0.0, self._clock() - started - self._pace.rested_s)
            self._settle(found)
            self._publish(found)
            self._pace.end()
            self._scanned_at = self._clock()

    def hurry(self) -> None:
        """Have the scan that runs, or else the next one, end as soon as it can."""
        self._pace.hurry()

    def look(self, name: str) -> None:
        """Bring one name up to date; where a scanner fails, all stays as it was."""
        while True:
            before = self._scans, self.snapshot.of_name(name)
            try:
                found = [scanner.scan_name(name) for scanner in self._scanners]
            except Exception as error:
                logger.debug("no look at the models named %r: %s", name, error)
                return
            with self._publishing:
                # Otherwise others have read meanwhile, maybe later than this look.
                if before == (self._scans, self.snapshot.of_name(name)):
                    self._publish_name(name, found)
                    return

    def _publish_name(self, name: str, found: Sequence[Sequence[ModelSpec]]) -> None:
        if self._scanning.locked():
            self._looked.add(name)
        if Snapshot(found).of_name(name) != self.snapshot.of_name(name):
            self._found = _with_names(self._found, {name}, found)
            self.snapshot = self.snapshot.with_name(name, found)

    def _settle(self, found: Sequence[Sequence[ModelSpec] | None]) -> None:
        """Look again at each name of which the scan and a look while it ran say different things.

        Either may have read last. The looks that end from now on have read after the scan.
        """
        with self._publishing:
            self._scans += 1
            disputed = self._disputed(found)
        for name in disputed:
            self.look(name)
            self._pace.step()

    def _publish(self, scanned: Sequence[Sequence[ModelSpec] | None]) -> None:
        """Let the snapshot show what a scan found, None where a scanner failed.

        What is disputed stays as the looks left it. Where there is no news, the snapshot stays the
        same object.
        """
        with self._publishing:
            disputed = self._disputed(scanned)
            self._looked.clear()
            present = [
                known if new is None else new
                for new, known in zip(scanned, self._found, strict=True)
            ]
            found = _with_names(present, disputed, self._found) if disputed else present
            if found != self._found:
                self._found = found
                self.snapshot = Snapshot(found)

    def _disputed(self, scanned: Sequence[Sequence[ModelSpec] | None]) -> set[str]:
        """Return the names that were looked at of which a scan found something else."""
        names: set[str] = set()
        if self._looked:
            for new, known in zip(scanned, self._found, strict=True):
                if new is not None:
                    ours, theirs = _of_names(known, self._looked), _of_names(new, self._looked)
                    names |= {name for name in self._looked if ours.get(name) != theirs.get(name)}
        return names

    def _scan(self, index: int, scanner: Scanner) -> Sequence[ModelSpec] | None:
        """Return what a scanner finds, None when it fails."""
        found = failure = None
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


def _of_names(specs: Iterable[ModelSpec], names: Set[str]) -> dict[str, list[ModelSpec]]:
    """Return the entries of some names, by name."""
    found: dict[str, list[ModelSpec]] = {}
    for spec in specs:
        if spec.key.name in names:
            found.setdefault(spec.key.name, []).append(spec)
    return found


def _with_names(
    found: Sequence[Sequence[ModelSpec]], names: Set[str], newer: Sequence[Sequence[ModelSpec]]
) -> list[Sequence[ModelSpec]]:
    """Return what each source has, but of some names what it has in `newer`."""
    return [
        [
            *(spec for spec in known if spec.key.name not in names),
            *(spec for spec in new if spec.key.name in names),
        ]
        for known, new in zip(found, newer, strict=True)
    ]
