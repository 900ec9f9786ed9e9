"""Virtual time: what happens next, in order."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """Runs actions in the order of their times; those of one time in the order of their making."""

    def __init__(self) -> None:
        """Begin at 0 s with nothing to do."""
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._made = 0

    def at(self, time_s: float, action: Action) -> None:
        """Run `action` at `time_s`, at once if that has passed."""
        self._made += 1
        heapq.heappush(self._events, (max(time_s, self.now), self._made, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Run `action` in `delay_s` seconds."""
        self.at(self.now + delay_s, action)

    def every(self, period_s: float, first_s: float, action: Action) -> None:
        """Run `action` at `first_s` and every `period_s` from then on."""

        def run() -> None:
            action()
            self.after(period_s, run)

        self.at(first_s, run)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Go on until `is_over`.

        Raises:
            RuntimeError: nothing is left to do, and it is not over
        """
        while not is_over():
            if not self._events:
                raise RuntimeError(f"the simulation stands still at {self.now:.3f} s")
            self.now, _, action = heapq.heappop(self._events)
            action()
