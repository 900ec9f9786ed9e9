"""How many answers a second the detectors can give, learnt from when they came. Pure.

Between two answers that both came out of a queue the detectors were busy, so the time between them
is what one answer takes; where several ingresses share them, one answer for this one. Any other
time says how much was asked for, and is not counted.
"""

import math
import time
from collections.abc import Callable

_MEMORY_S = 5.0
"""What is older counts less than a third, ..."""
_MEMORY_ANSWERS = 16.0
"""... but so many answers are remembered where they take longer than that."""
_KNOWN_ANSWERS = 8.0
"""With fewer the rate is a guess."""
_SILENCE_S = 1.0
"""After so long without an answer the detectors do something else, load a model say, ..."""
_LONGEST_SILENCE_S = 4.0
_SILENCE_ANSWERS = 8.0
"""... or up to this, where so many answers take longer. That is while the rate is unknown."""
_ASSUMED_PER_S = 16.0
_ASSUMED_FOR_S = 0.5
"""A guess goes out from this rate, which counts like one that was measured for so long."""


class AnswerRate:
    """Answers a second, in the long run and now."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, patience_s: float = 0.0
    ) -> None:
        """Know of no answers.

        Args:
            clock: seconds
            patience_s: once the rate is known, a silence of up to this is a part of it: others
                that share the detectors get their answers meanwhile
        """
        self._clock = clock
        self._known_patience_s = patience_s
        self._heard_at = self._faded_at = clock()
        self._was_queued = False
        self._answers = self._measured_s = 0.0
        self._assumed_per_s = _ASSUMED_PER_S
        self._settle()

    def begin(self) -> None:
        """Wait for answers from now: there were no calls until now."""
        self._fade()
        self._heard_at = self._faded_at
        self._was_queued = False
        self._assumed_per_s = _ASSUMED_PER_S
        self._settle()

    def answered(self, *, queued: bool) -> None:
        """Count one answer; `queued` says whether others were waiting all the time."""
        if self._is_silent:
            # Before it, there may have been other replicas; the silence itself was no answering.
            self._assumed_per_s = self.per_s
            self._answers = self._measured_s = 0.0
        self._fade()
        if queued and self._was_queued and not self._is_silent:
            self._answers += 1
            self._measured_s += self._faded_at - self._heard_at
        self._heard_at = self._faded_at
        self._was_queued = queued
        self._settle()

    @property
    def known_per_s(self) -> float | None:
        """What the detectors can do; None when too little was measured, or nothing answers."""
        return None if self._is_silent else self._known_per_s

    @property
    def per_s(self) -> float:
        """What to expect now, if need be a guess; a silence lowers it by what it lasts."""
        self._fade()
        silent_s = max(0.0, self._clock() - self._heard_at - self._patience_s)
        return self._expected(silent_s)

    @property
    def _is_silent(self) -> bool:
        return self._clock() - self._heard_at > self._patience_s

    def _expected(self, silent_s: float = 0.0) -> float:
        answers = self._answers + self._assumed_per_s * _ASSUMED_FOR_S
        return answers / (self._measured_s + _ASSUMED_FOR_S + silent_s)

    def _settle(self) -> None:
        """Adapt to the rate how long an answer is waited for, and remembered."""
        is_known = self._answers >= _KNOWN_ANSWERS and self._measured_s > 0
        self._known_per_s = self._answers / self._measured_s if is_known else None
        expected = self._expected()
        usual_s = _SILENCE_ANSWERS / expected
        self._patience_s = min(max(_SILENCE_S, usual_s), _LONGEST_SILENCE_S)
        if is_known:
            self._patience_s = max(self._patience_s, self._known_patience_s)
        self._memory_s = max(_MEMORY_S, _MEMORY_ANSWERS / expected)

    def _fade(self) -> None:
        now = self._clock()
        kept = math.exp((self._faded_at - now) / self._memory_s)
        self._answers *= kept
        self._measured_s *= kept
        self._faded_at = now
