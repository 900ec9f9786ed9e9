"""Which models are set aside because their loads keep failing, and until when. Pure.

A file that cannot be loaded would otherwise be fetched and read again for every request. After
some failures in a row a model's requests are refused at once; from time to time one load is let
through, and if that succeeds everything is forgotten.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from serve_app.errors import ModelBrokenError, ServeAppError, SourceUnavailableError
from serve_app.types import ModelKey, SetAside

FAILURES = 3
"""Loads in a row that must have failed."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S: Mapping[type[ServeAppError], float] = {
    ModelBrokenError: 300.0,
    SourceUnavailableError: 5.0,  # it comes back for all its models at once, and asking is cheap
}
"""Each further failure doubles the pause up to this, by what the last load ended in. Errors that
are not named here say nothing of the next load and are not counted."""
LOOK_EVERY_S = 1.0
"""So often at most is a refused model's file looked at."""
_KEPT = 4096
_MOST_DOUBLINGS = 16


def nothing_known(_key: ModelKey) -> Hashable:
    """Know nothing of a model's file."""
    return None


def look_at_nothing(_key: ModelKey) -> None:
    """Look at no model's file."""


@dataclass(slots=True)
class _Record:
    """What went wrong lately. `until`: when the next load may be tried."""

    error: ServeAppError
    file: Hashable
    failures: int = 0
    until: float = -math.inf
    looked: float = -math.inf


class Quarantine:
    """Counts failed loads and says which may be tried; belongs to one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        file_of: Callable[[ModelKey], Hashable] = nothing_known,
        look: Callable[[ModelKey], None] = look_at_nothing,
    ) -> None:
        """Set nothing aside.

        Args:
            clock: seconds
            file_of: something that differs when a model's file is another one; must not block
            look: has what `file_of` tells of a refused model brought up to date; must not block
        """
        self._clock = clock
        self._file_of = file_of
        self._look = look
        self._records: OrderedDict[ModelKey, _Record] = OrderedDict()

    def check(self, key: ModelKey) -> None:
        """Return if a load of `key` may be tried now.

        Raises:
            ServeAppError: it is set aside; what its last load ended in, and when it is tried again
        """
        record = self._records.get(key)
        if record is None or not self._is_aside(record):
            return
        if record.file != self._file_of(key):
            del self._records[key]  # it was replaced: the new file has done no wrong
            return
        now = self._clock()
        if now >= record.looked + LOOK_EVERY_S:
            record.looked = now
            self._look(key)
        left_s = record.until - now
        error = type(record.error)(
            f"{record.error.detail} (set aside after {record.failures} failed loads in a row; it "
            f"is tried again in {math.ceil(left_s)} s, or at once by POST .../load)",
            retry_after_s=left_s,
        )
        raise error

    def failed(self, key: ModelKey, error: ServeAppError) -> None:
        """Count a failed load, if that is the model's fault or its source's."""
        longest_s = LONGEST_PAUSE_S.get(type(error))
        if longest_s is None:
            return
        record = self._records.pop(key, None)
        file = self._file_of(key)
        if record is None or record.file != file:
            record = _Record(error, file)
        self._records[key] = record
        record.error = error
        record.failures += 1
        if record.failures >= FAILURES:
            doublings = min(record.failures - FAILURES, _MOST_DOUBLINGS)
            record.until = self._clock() + min(FIRST_PAUSE_S * 2**doublings, longest_s)
        if len(self._records) > _KEPT:
            self._records.popitem(last=False)

    def loaded(self, key: ModelKey) -> None:
        """Forget what went wrong before."""
        self._records.pop(key, None)

    def try_now(self, key: ModelKey) -> None:
        """Let the next load of `key` through; should it fail, the pause doubles all the same."""
        record = self._records.get(key)
        if record is not None:
            record.until = -math.inf

    def snapshot(self) -> tuple[SetAside, ...]:
        """Return the models whose requests are refused now."""
        now = self._clock()
        return tuple(
            SetAside(str(key), record.error.code, record.failures, round(record.until - now, 3))
            for key, record in self._records.items()
            if self._is_aside(record)
        )

    def _is_aside(self, record: _Record) -> bool:
        return self._clock() < record.until
