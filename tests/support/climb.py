"""Tells a leak from the steps in which an allocator grows."""

import numpy as np

ROUND = 40
"""Loads. Over less than three rounds, steps of 2 MiB hide that each load keeps 20 KiB."""
LEAST_ROUNDS = 4
MOST_ROUNDS = 8


class Climb:
    """The resident set after each load: how much its floor rises from the first round to the last.

    A leak rises at the same rate however long one looks. What a step of the allocator adds is
    spread over ever more loads: where four rounds climb, more of them tell.
    """

    def __init__(self, limit: int, warm: int = 40) -> None:
        """Allow `limit` bytes per load; the first `warm` loads do not count."""
        self._limit = limit
        self._warm = warm
        self._samples: list[int] = []
        self._floors: list[float] = []
        self.rates: list[float] = []
        """In bytes per load: over the first four rounds, the first five, and so on."""

    def add(self, resident: int) -> bool:
        """Take the resident set after a load; return whether that was enough to tell."""
        if self._warm:
            self._warm -= 1
            return False
        self._samples.append(resident)
        if len(self._samples) % ROUND == 0:
            self._end_round()
        return self.settled or len(self._floors) == MOST_ROUNDS

    @property
    def settled(self) -> bool:
        """Whether all rounds so far, four at least, climb by less than the limit."""
        return bool(self.rates) and self.rates[-1] < self._limit

    @property
    def spread(self) -> int:
        """Bytes between the least and the most that was resident."""
        return max(self._samples) - min(self._samples)

    def _end_round(self) -> None:
        # The lower quartile: what a load holds for a moment is above it, a single dip below.
        self._floors.append(float(np.quantile(self._samples[-ROUND:], 0.25)))
        loads = len(self._samples) - ROUND
        if len(self._floors) >= LEAST_ROUNDS:
            self.rates.append((self._floors[-1] - self._floors[0]) / loads)
