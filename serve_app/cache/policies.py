"""Eviction policies: in which order models go when room is needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.types import ModelKey


@dataclass(frozen=True, slots=True)
class Usage:
    """What a policy may know of a resident model.

    charged_bytes: the room that it takes; see `CacheLimits.charge`
    reload_s: seconds its last load took, without waiting for a turn or for room
    last_used: when its last lease began or ended, on the cache's clock
    uses: leases since it became resident
    """

    key: ModelKey
    charged_bytes: int
    reload_s: float
    last_used: float
    uses: int


class Policy(Protocol):
    """Ranks the models that may be evicted. Must not block: it runs on the event loop."""

    def used(self, key: ModelKey) -> None:
        """Learn of a lease of `key`, which is resident or about to be loaded."""

    def evicted(self, usage: Usage) -> None:
        """Learn that a model goes because room is needed; not told of unloads by an operator."""

    def order(self, candidates: Sequence[Usage]) -> Sequence[Usage]:
        """Return all `candidates`, the first to go first; changes nothing."""


class LRU:
    """The least recently used model goes first."""

    def used(self, key: ModelKey) -> None:
        """Do nothing: `last_used` says it all."""

    def evicted(self, usage: Usage) -> None:
        """Do nothing."""

    def order(self, candidates: Sequence[Usage]) -> Sequence[Usage]:
        """Return all `candidates`, the longest unused first."""
        return sorted(candidates, key=lambda usage: usage.last_used)


@dataclass(slots=True)
class _History:
    """What GDSF remembers of a model, resident or not.

    frequency: its leases, older ones counting less
    counted_at: how many leases of any model there had been at its last one
    clock: the policy's clock at its last lease
    """

    frequency: float = 0.0
    counted_at: int = 0
    clock: float = 0.0


class GDSF:
    """Greedy-Dual-Size-Frequency: what is cheap to load again for its size goes first.

    A model's priority is `clock + frequency x reload_s / bytes`, taken at its last lease; the
    clock is the highest priority that was evicted so far. Whatever is leased again therefore
    starts above everything that has gone, and a model that was hot once is overtaken in the end.
    """

    # The last load stands for the next one: in simulations a mean over all loads, though they were
    # noisy, gained at most a few per cent. Frequencies outlive eviction, since where some models
    # are popular and loads cost much the same, GDSF without that memory costs more than LRU.

    def __init__(self, *, half_life: float = 1000.0, remembered: int = 10_000) -> None:
        """Make a policy that knows of no model.

        Args:
            half_life: leases of any model after which one lease counts half
            remembered: models whose frequency is kept, resident or not; the longest unused is
                forgotten first
        """
        self._half_life = half_life
        self._remembered = remembered
        self._histories: dict[ModelKey, _History] = {}  # the longest unused first
        self._leases = 0
        self._clock = 0.0

    def used(self, key: ModelKey) -> None:
        """Count a lease of `key` and lift it to the clock."""
        self._leases += 1
        history = self._histories.pop(key, None) or _History()
        age = self._leases - history.counted_at
        history.frequency = 1.0 + history.frequency * 0.5 ** (age / self._half_life)
        history.counted_at, history.clock = self._leases, self._clock
        self._histories[key] = history
        if len(self._histories) > self._remembered:
            del self._histories[next(iter(self._histories))]

    def evicted(self, usage: Usage) -> None:
        """Move the clock on to the priority of the model that goes."""
        self._clock = max(self._clock, self._priority(usage))

    def order(self, candidates: Sequence[Usage]) -> Sequence[Usage]:
        """Return all `candidates`, the lowest priority first, then the longest unused."""
        return sorted(candidates, key=lambda usage: (self._priority(usage), usage.last_used))

    def _priority(self, usage: Usage) -> float:
        # Residents from before this policy was chosen are unknown to it: they count as used often
        # as the cache says, and long ago.
        history = self._histories.get(usage.key) or _History(frequency=usage.uses)
        return history.clock + history.frequency * usage.reload_s / max(1, usage.charged_bytes)


POLICIES: Mapping[str, Callable[[], Policy]] = {"lru": LRU, "gdsf": GDSF}
"""The policies by the names that an operator writes."""
