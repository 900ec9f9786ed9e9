"""What an ingress replica knows of the queue before the detectors: how fast, how full. Pure.

The queue itself is Ray's, and bounded. Here is what makes its refusals useful: how long to stay
away, and whether a request can be refused by its headers, before its pictures are taken in.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import OverloadedError, QueueFullError, ServeAppError

SHORTEST_S = 1.0
LONGEST_S = 60.0
"""Bounds of Retry-After."""
_MEMORY_S = 10.0
"""Answers that are older count less than a third in the rate."""
_DOUBT_S = 0.5
"""What was measured before a long silence counts as much as so many seconds."""
_SHUT_S = 0.25
"""For so long a refusal tells of the queue; a replica that joined may have made room since."""


class AnswerRate:
    """Answers a second, measured while there was something to answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._busy_since: float | None = None
        self._busy_s = 0.0
        self._silent_s = 0.0
        self._answers = 0.0

    def begin(self) -> None:
        """Count the time from now: there is work again."""
        if self._busy_since is None:
            self._busy_since = self._clock()

    def end(self) -> None:
        """Count no time from now: there is no work left."""
        self._take_time()
        self._busy_since = None

    def answered(self) -> None:
        """Count one answer."""
        self._take_time()
        self._answers += 1
        if self._silent_s > _MEMORY_S and self._busy_s > _DOUBT_S:
            # A first replica has come, say: what it does tells more than how long it took.
            self._answers *= _DOUBT_S / self._busy_s
            self._busy_s = _DOUBT_S
        self._silent_s = 0.0

    @property
    def per_s(self) -> float:
        """Answers a second; 0 when nothing was answered yet."""
        self._take_time()
        return self._answers / self._busy_s if self._busy_s > 0 else 0.0

    def _take_time(self) -> None:
        if self._busy_since is None:
            return
        now = self._clock()
        passed_s, self._busy_since = now - self._busy_since, now
        kept = math.exp(-passed_s / _MEMORY_S)
        self._silent_s += passed_s
        self._answers *= kept
        self._busy_s = self._busy_s * kept + _MEMORY_S * (1 - kept)


class Backlog:
    """The predict calls in progress, the rate of their answers, and whether the queue is full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know of no calls. `clock`: seconds."""
        self._clock = clock
        self._rate = AnswerRate(clock)
        self._calls = 0
        self._full_at = 0
        self._shut_until = -math.inf

    @property
    def retry_after_s(self) -> float:
        """Seconds until what is in progress now has been worked off, within bounds."""
        rate = self._rate.per_s
        return min(max(self._calls / rate, SHORTEST_S), LONGEST_S) if rate > 0 else SHORTEST_S

    def check(self) -> None:
        """Refuse a request before its body is read, if the queue was full just now and still is.

        Raises:
            QueueFullError: a call was refused a moment ago, and no other has ended since
        """
        if self._calls >= self._full_at and self._clock() < self._shut_until:
            raise QueueFullError(
                "all detector replicas are busy and the queue is full: try again later",
                retry_after_s=self.retry_after_s,
            )

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count the block as a call of a detector; tell in a refusal when to come again."""
        self._calls += 1
        self._rate.begin()
        try:
            yield
            self._rate.answered()
        except QueueFullError as error:
            self._full_at = self._calls - 1
            self._shut_until = self._clock() + _SHUT_S
            raise QueueFullError(error.detail, retry_after_s=self.retry_after_s) from None
        except OverloadedError:
            raise
        except ServeAppError:
            self._rate.answered()
            raise
        finally:
            self._calls -= 1
            if self._calls < self._full_at:
                self._shut_until = -math.inf
            if not self._calls:
                self._rate.end()
