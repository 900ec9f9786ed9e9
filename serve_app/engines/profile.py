"""How large batches of a model should be: a table of measured times, and its reading. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

LONGEST_S = 0.1
"""A batch that takes longer would make the other models wait for too long."""
LARGEST = 8
_GAIN = 0.9  # of the time per picture: less is worth the waiting


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Measured seconds of batches of 1, 2, 4... pictures of a model's own input size.

    A model that takes one picture at a time has a table of one; an empty one was not timed.
    """

    seconds: tuple[float, ...] = ()

    @property
    def max_batch(self) -> int:
        """The most pictures that should go in one batch."""
        best: int = 0
        for index in range(1, len(self.seconds)):
            faster = self._each_s(index) <= _GAIN * self._each_s(best)
            if not faster or self.seconds[index] > LONGEST_S:
                break
            best = index
        return 1 << best

    def expected_s(self, batch: int) -> float:
        """Return how long a batch of this many pictures will take; 0 when it was never timed."""
        if not self.seconds:
            return 0.0
        index = min((batch - 1).bit_length(), len(self.seconds) - 1)
        return self.seconds[index] * max(1.0, batch / (1 << index))

    def _each_s(self, index: int) -> float:
        return self.seconds[index] / (1 << index)


def measure(run: Callable[[int], float]) -> BatchProfile:
    """Time batches for as long as larger ones pay. `run` runs one and returns its seconds."""
    seconds = [run(1)]
    profile = BatchProfile(tuple(seconds))
    while profile.max_batch == 1 << (len(seconds) - 1) < LARGEST and 2 * seconds[-1] <= LONGEST_S:
        seconds.append(run(1 << len(seconds)))
        profile = BatchProfile(tuple(seconds))
    return profile
