"""Detectors in virtual time behind Backlogs: a queue in order of arrival, models that load."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from serve_app.errors import QueueFullError
from serve_app.ingress.overload import Backlog
from tests.unit.ingress.fakes import Clock

HELD, QUEUED = 64, 256
"""Calls that a detector holds, and that wait for it at the router of each ingress."""


@dataclass
class Asked:
    """One request; `answered_at` and `retry_after_s` stay None where it was not."""

    model: str
    at: float
    answered_at: float | None = None
    retry_after_s: float | None = None
    by_number: bool = False
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def waited_s(self) -> float:
        """Seconds from the arrival to the answer; for ever while there is none."""
        return float("inf") if self.answered_at is None else self.answered_at - self.at


class Detectors:
    """Answer `per_s` calls a second, up to `batch` together, once their model is loaded.

    While `stuck` is a list, every other call goes to a replica that never answers, and stays there.

    Each call comes by one of the `ingresses`, at random. With `shuffled`, those that a detector
    does not hold yet are taken in no order, as Ray's routers do.
    """

    def __init__(
        self,
        max_wait_s: float | None = 3.0,
        *,
        per_s: float = 30.0,
        batch: int = 1,
        ingresses: int = 1,
        replicas: int = 0,
        shuffled: bool = False,
    ) -> None:
        self.clock = Clock()
        self.backlogs = [
            Backlog(max_wait_s, self.clock, lambda: replicas) for _ in range(ingresses)
        ]
        self.room = HELD + QUEUED * ingresses
        self.per_s = per_s
        self.batch = batch
        self.asked: list[Asked] = []
        self.busy_s = 0.0
        self.stuck: list[Asked] | None = None
        self._loading: dict[str, list[Asked]] = {}
        self._queue: deque[Asked] = deque()
        self._held = HELD if shuffled else float("inf")
        self._routed: list[Asked] = []
        self._random = random.Random(3)  # noqa: S311
        self._running = False
        self._in_progress = 0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, when: float, act: Callable[[], object]) -> None:
        """Have something happen at a time."""
        heapq.heappush(self._events, (when, next(self._numbers), act))

    def ask(self, times: Iterable[float], model: str | Callable[[int], str] = "hot") -> None:
        """Have requests arrive; `model` names them all, or each by its number."""
        for number, when in enumerate(times):
            name = model if isinstance(model, str) else model(number)
            self.at(when, partial(self._arrive, name))

    def ask_in_turn(self, count: int, model: str = "hot") -> None:
        """Have one client ask again and again, each time once it has its answer; from now."""

        def again(left: int) -> None:
            asked = self._arrive(model)
            if left > 1:
                asked.stack.callback(lambda: self.at(self.clock.now, lambda: again(left - 1)))

        self.at(self.clock.now, lambda: again(count))

    def load(self, model: str, begin: float, end: float) -> None:
        """Have calls of `model` wait from one time to another."""

        def loaded() -> None:
            self._routed.extend(self._loading.pop(model))
            self._go_on()

        self.at(begin, lambda: self._loading.setdefault(model, []))
        self.at(end, loaded)

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.clock.now, _, act = heapq.heappop(self._events)
            act()
        self.clock.now = until

    def accepted(self, since: float = 0.0, until: float = float("inf")) -> list[Asked]:
        """Return those that were let in, of the ones that arrived within a time."""
        return [a for a in self.asked if a.retry_after_s is None and since <= a.at < until]

    def refused(self, since: float = 0.0, until: float = float("inf")) -> list[Asked]:
        """Return those that were not let in."""
        return [a for a in self.asked if a.retry_after_s is not None and since <= a.at < until]

    def _arrive(self, model: str) -> Asked:
        asked = Asked(model, self.clock.now)
        self.asked.append(asked)
        backlog = self._random.choice(self.backlogs)
        try:
            backlog.check()
            if self._in_progress >= self.room:
                asked.by_number = True
                with backlog.call(model):
                    raise QueueFullError("full")
            asked.stack.enter_context(backlog.call(model))
        except QueueFullError as error:
            asked.retry_after_s = error.retry_after_s
            return asked
        self._in_progress += 1
        if self.stuck is not None and len(self.asked) % 2:
            self.stuck.append(asked)
            return asked
        self._loading.get(model, self._routed).append(asked)
        self._go_on()
        return asked

    def _route(self) -> None:
        while self._routed and len(self._queue) < self._held:
            number = self._random.randrange(len(self._routed)) if self._held == HELD else 0
            self._queue.append(self._routed.pop(number))

    def _go_on(self) -> None:
        self._route()
        if self._running or not self._queue:
            return
        self._running = True
        taken = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
        takes_s = len(taken) / self.per_s
        self.busy_s += takes_s
        self.at(self.clock.now + takes_s, lambda: self._answer(taken))

    def _answer(self, taken: list[Asked]) -> None:
        for asked in taken:
            self._in_progress -= 1
            asked.answered_at = self.clock.now
            asked.stack.close()
        self._running = False
        self._go_on()


def steadily(per_s: float, since: float, until: float) -> list[float]:
    """Return evenly spaced times."""
    return [since + n / per_s for n in range(round((until - since) * per_s))]
