"""Which file is to be prepared next, and which never again; decides only, reads no file."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serve_app.engines.files import FileIdentity

_ATTEMPTS = 2
_AGAIN_AFTER_S = 600.0


@dataclass(slots=True)
class _Record:
    """What is known of a file. `settled_at`: when it was last prepared, None before that."""

    identity: FileIdentity
    failures: int = 0
    refused: bool = False
    settled_at: float | None = None


class PrepareQueue:
    """Paths in the order of their turn, without duplicates, and how each fared.

    A path stays in the queue until its outcome is told. An unchanged file is prepared once; if it
    is opened plainly all the same, its prepared weights had to go, and it is prepared anew, but
    rarely: a store that is too small for its models is not written all day.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds that only grow."""
        self._clock = clock
        self._urgent: dict[str, None] = {}
        self._wanted: dict[str, None] = {}
        self._records: dict[str, _Record] = {}
        self.settled = 0
        """How often a file was prepared."""

    def __bool__(self) -> bool:
        return bool(self._urgent or self._wanted)

    def want(self, paths: Iterable[str]) -> None:
        """Replace all that waits, except what was urged."""
        self._wanted = dict.fromkeys(paths)

    def want_no_more(self) -> int:
        """Drop all that is only wanted, and return how many those were."""
        dropped = len(self._wanted.keys() - self._urgent.keys())
        self._wanted = {}
        return dropped

    def urge(self, path: str) -> None:
        """Let `path` go before what is only wanted."""
        self._urgent[path] = None

    def is_urged(self, path: str) -> bool:
        """Whether `path` is more than wanted."""
        return path in self._urgent

    def peek(self, count: int = 1) -> list[str]:
        """Return the next in turn, at most `count`."""
        return list(itertools.islice(itertools.chain(self._urgent, self._wanted), count))

    def is_due(self, identity: FileIdentity) -> bool:
        """Whether the file in the queue is to be prepared; if not, `drop` it."""
        record = self._records.get(identity[0])
        if record is None or record.identity != identity:
            return True
        if record.refused:
            return False
        if record.settled_at is None:
            return True
        return identity[0] in self._urgent and self._clock() - record.settled_at >= _AGAIN_AFTER_S

    def drop(self, path: str) -> None:
        """Take `path` out of the queue."""
        self._urgent.pop(path, None)
        self._wanted.pop(path, None)

    def is_settled(self, path: str) -> bool:
        """Whether the file was prepared, as it was when it was last looked at."""
        record = self._records.get(path)
        return record is not None and record.settled_at is not None

    def settle(self, identity: FileIdentity) -> None:
        """The file is prepared, or needs not be."""
        self.settled += 1
        self._records[identity[0]] = _Record(identity, settled_at=self._clock())
        self.drop(identity[0])

    def refuse(self, identity: FileIdentity) -> None:
        """The file cannot be prepared; it is set aside until it changes."""
        self._records[identity[0]] = _Record(identity, refused=True)
        self.drop(identity[0])

    def fail(self, identity: FileIdentity) -> bool:
        """Preparing failed, perhaps not by the file's fault: it may try once more, after others.

        Returns:
            whether this was its last attempt
        """
        path = identity[0]
        record = self._records.get(path)
        if record is None or record.identity != identity:
            record = self._records[path] = _Record(identity)
        record.failures += 1
        if record.failures >= _ATTEMPTS:
            self.refuse(identity)
            return True
        self.drop(path)
        self._wanted[path] = None
        return False
