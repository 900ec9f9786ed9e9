"""How long steps of an engine have been running: what never ends is told from what is slow."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PATIENCE = 10.0
"""A step may take so many times what is expected of it, however long that is."""
WARM_UP_S = 12.0
"""What nothing is known of, a first pass say, is no later than a warm-up, which may take that long:
the first passes of a graph compile and record it."""


@dataclass(slots=True, eq=False)
class Step:
    """One step that runs. `expected_s` may be set while it does; 0: nothing is known."""

    what: str
    begun: float
    expected_s: float = 0.0


class Watch:
    """Knows the steps that run now in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._numbers = itertools.count()
        self._running: dict[int, Step] = {}

    @contextmanager
    def step(self, what: str, expected_s: float = 0.0) -> Iterator[Step]:
        """Watch the block; `what` names it in messages, such as 'a pass'."""
        number = next(self._numbers)
        step = self._running[number] = Step(what, self._clock(), expected_s)
        try:
            yield step
        finally:
            del self._running[number]

    def overdue(self, limit_s: float) -> str | None:
        """Return which step has run longer than `limit_s` and much longer than expected, if any."""
        now = self._clock()
        for step in list(self._running.values()):
            took_s = now - step.begun
            if took_s > max(limit_s, PATIENCE * step.expected_s):
                return f"{step.what} has been running for {took_s:.0f} s"
        return None

    def late_s(self) -> float:
        """Return for how long a step has run that takes much longer than expected; 0: none does.

        Where nothing is expected of a step, it may take as long as a warm-up.
        """
        now = self._clock()
        took = ((now - step.begun, step.expected_s) for step in list(self._running.values()))
        late = (s for s, expected_s in took if s > (PATIENCE * expected_s or WARM_UP_S))
        return max(late, default=0.0)
