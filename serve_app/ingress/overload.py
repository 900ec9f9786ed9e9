"""What an ingress replica knows of the queue before the detectors: how long, how full. Pure.

The queue itself is Ray's, and bounded by number. Here it is bounded by the time that it takes as
well, so that who is let in is answered soon; and here is what makes a refusal useful: how long to
stay away, and whether to refuse by the headers, before the pictures are taken in.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

from serve_app.errors import QueueFullError
from serve_app.ingress.answer_rate import AnswerRate

SHORTEST_S = 1.0
LONGEST_S = 60.0
"""Bounds of Retry-After."""
_QUEUE = 8
"""So many calls in progress are a queue; no more than these are never too many."""
_PER_REPLICA = 20
"""Nor are so many for each detector: more than `target_ongoing_requests` in serve_config.yaml, so
that a fleet of slow ones still grows."""
_SHUT_S = 0.25
"""For so long a refusal tells of the queue; a replica that joined may have made room since."""
_STALLED_S = 1.0
"""Calls overtaken by this, or by `max_wait_s` if that is more, wait for something else: a load."""
_PATIENCE = 2.0
"""For so many times `max_wait_s` without an answer the queue itself may be the reason: another
ingress has filled it, and gets its answers in a row. So long the last rate holds."""
_NO_ORDER = 2.0
"""So much more for calls of one model: at the router they wait for a replica in no order."""


@dataclass(slots=True)
class _Model:
    """The calls in progress of one model.

    heard_at: when one was answered last, or they began from nothing
    answered: when the latest of those that were answered had begun
    began: when each of those in progress began, in that order, by its number
    """

    heard_at: float
    answered: float = -math.inf
    began: dict[int, float] = field(default_factory=dict)

    def waiting(self, overtaken_s: float) -> int:
        """Return how many were not overtaken by one that came later by more than this."""
        lost_before = self.answered - overtaken_s
        lost = sum(1 for _ in takewhile(lambda began: began < lost_before, self.began.values()))
        return len(self.began) - lost


class Backlog:
    """The predict calls in progress, the rate of their answers, and whether more may come."""

    def __init__(
        self,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        replicas: Callable[[], int] = lambda: 0,
    ) -> None:
        """Know of no calls.

        Args:
            max_wait_s: refuse calls while those in progress take longer than this; None: never
            clock: seconds
            replicas: how many detectors there are; each may have a few calls, however slow it is
        """
        self.max_wait_s = max_wait_s
        self._replicas = replicas
        self._stalled_s = max(max_wait_s or 0.0, _STALLED_S)
        self._clock = clock
        self._rate = AnswerRate(clock, _PATIENCE * (max_wait_s or 0.0))
        self._calls = 0
        self._numbers = count()
        self._models: dict[Hashable, _Model] = {}
        self._answered = -math.inf
        self._full_at = 0
        self._shut_until = -math.inf

    @property
    def in_progress(self) -> int:
        """How many calls have begun and not ended."""
        return self._calls

    @property
    def models_in_progress(self) -> int:
        """Of how many models they are: about no others anything is kept."""
        return len(self._models)

    @property
    def retry_after_s(self) -> float:
        """Seconds until what is in progress now has been worked off, within bounds."""
        return _bounded(self._calls / self._rate.per_s)

    def check(self) -> None:
        """Refuse a request before its body is read, if `call` would, as far as can be told.

        Raises:
            QueueFullError: what is in progress takes too long; or a call was refused a moment ago
                for want of room, and no other has ended since
        """
        if self._calls >= self._full_at and self._clock() < self._shut_until:
            raise QueueFullError(
                "all detector replicas are busy and the queue is full: try again later",
                retry_after_s=self.retry_after_s,
            )
        self._check_wait()

    @contextmanager
    def call(self, model: Hashable) -> Iterator[None]:
        """Count the block as a call of a detector; tell in a refusal when to come again.

        Only what ends without an error is an answer: most errors come without a pass, and quickly.

        Raises:
            QueueFullError: what is in progress takes too long already
        """
        self._check_wait()
        number = self._begin(model)
        try:
            yield
            self._take_answer(model, number)
        except QueueFullError as error:
            self._full_at = self._calls - 1
            self._shut_until = self._clock() + _SHUT_S
            raise QueueFullError(error.detail, retry_after_s=self.retry_after_s) from None
        finally:
            self._end(model, number)

    def _check_wait(self) -> None:
        if self.max_wait_s is None or self._calls <= _QUEUE:
            return
        at_least = max(_QUEUE, _PER_REPLICA * self._replicas())
        rate = self._rate.known_per_s
        if rate is None or (waiting := self._waiting(self._stalled_s)) <= at_least:
            return
        wait_s = waiting / rate
        if wait_s > self.max_wait_s:
            raise QueueFullError(
                f"all detector replicas are busy, and what waits for them takes {wait_s:.1f} s "
                f"(max_wait_s: {self.max_wait_s:g}): try again later",
                retry_after_s=_bounded(wait_s),
            )

    def _waiting(self, overtaken_s: float) -> int:
        """Return the calls in progress that a further one would wait behind.

        Not those of a model that is being loaded, nor those that a replica holds which is stuck:
        they keep nobody waiting. It shows by others that came later by more than `overtaken_s` and
        have been answered: of any model, where of their own there is no answer; else of their own,
        since models take turns.
        """
        silent_before = self._answered - overtaken_s
        return sum(
            model.waiting(_NO_ORDER * overtaken_s)
            for model in self._models.values()
            if model.heard_at >= silent_before
        )

    def _begin(self, key: Hashable) -> int:
        now = self._clock()
        if not self._calls:
            self._rate.begin()
        self._calls += 1
        number = next(self._numbers)
        self._models.setdefault(key, _Model(now)).began[number] = now
        return number

    def _take_answer(self, key: Hashable, number: int) -> None:
        self._rate.answered(queued=self._waiting(0.0) >= _QUEUE)
        model = self._models[key]
        began = model.began[number]
        model.heard_at = self._clock()
        model.answered = max(model.answered, began)
        self._answered = max(self._answered, began)

    def _end(self, key: Hashable, number: int) -> None:
        self._calls -= 1
        model = self._models[key]
        del model.began[number]
        if not model.began:
            del self._models[key]
        if self._calls < self._full_at:
            self._shut_until = -math.inf


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S)
