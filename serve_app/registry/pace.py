"""Lets a long scan step back for requests."""

import threading
import time
from collections.abc import Callable

WORK_S, REST_S = 0.002, 0.006
"""A scan works and rests in turn: at most a quarter of a core, and the interpreter's lock is free
in between. At full speed one of 10,000 models slows requests for as long as it lasts."""


class Pace:
    """Work in slices with rests between them, until somebody waits for its end.

    One thread works, any other may hurry it.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], object] | None = None,
    ) -> None:
        """Measure with `clock`; `rest` waits for so many seconds, or until it is hurried."""
        self._clock = clock
        self._hurried = threading.Event()
        self._rest = self._hurried.wait if rest is None else rest
        self._gently = False
        self._since = 0.0
        self.rested_s = 0.0
        """Seconds of rest since `begin`."""

    def begin(self, *, gently: bool) -> None:
        """Begin a piece of work, with rests or without."""
        self._gently = gently
        self._since = self._clock()
        self.rested_s = 0.0

    def end(self) -> None:
        """End it; whoever hurried has what it waited for."""
        self._hurried.clear()

    def hurry(self) -> None:
        """Leave out the rests of what is being done now."""
        self._hurried.set()

    def step(self) -> None:
        """Rest if it is time to; called between two small parts of the work."""
        if not self._gently or self._hurried.is_set():
            return
        now = self._clock()
        if now - self._since >= WORK_S:
            self._rest(REST_S)
            self._since = self._clock()
            self.rested_s += self._since - now
