"""Tells a leak from the steps in which an allocator grows."""

from collections.abc import Iterable

import numpy as np

ROUND = 50
MOST_ROUNDS = 4


def slope(resident: Iterable[int]) -> float:
    """Return by how many bytes the resident set grows from one sample to the next."""
    samples = np.array(list(resident), float)
    return float(np.polyfit(np.arange(len(samples)), samples, 1)[0])


class Climb:
    """The resident set after each load, judged round by round.

    A leak climbs in every round. An allocator takes a step now and then: a round without one is
    enough to tell, and most often the first is.
    """

    def __init__(self, limit: int, warm: int = 40) -> None:
        """Allow `limit` bytes per load; the first `warm` loads do not count."""
        self._limit = limit
        self._warm = warm
        self._samples: list[int] = []
        self.slopes: list[float] = []
        """Of each round, in bytes per load."""

    def add(self, resident: int) -> bool:
        """Take the resident set after a load; return whether that was enough to tell."""
        if self._warm:
            self._warm -= 1
            return False
        self._samples.append(resident)
        if len(self._samples) % ROUND == 0:
            self.slopes.append(slope(self._samples[-ROUND:]))
        return self.settled or len(self.slopes) == MOST_ROUNDS

    @property
    def settled(self) -> bool:
        """Whether the last whole round did not climb."""
        return bool(self.slopes) and self.slopes[-1] < self._limit

    @property
    def spread(self) -> int:
        """Bytes between the least and the most that was resident."""
        return max(self._samples) - min(self._samples)
