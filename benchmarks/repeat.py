"""One thing done again and again in a thread, while a `with` block runs."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Repeater:
    """Calls `once` when the block begins, in every interval from then on, and when it has ended."""

    def __init__(
        self, name: str, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`name`: of the thread; `clock`: seconds."""
        self._interval_s = interval_s
        self._clock = clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.start = 0.0

    def once(self) -> None:
        """Do it, `elapsed_s` after the start; what inherits this says what."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what `once` needed; called at the end."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the block began."""
        return self._clock() - self.start

    def __enter__(self) -> Self:
        self.start = self._clock()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.once()
            self._ended.wait(self._interval_s)
        self.once()
