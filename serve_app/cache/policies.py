"""Eviction policies: in which order models go when room is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.types import ModelKey


@dataclass(frozen=True, slots=True)
class Usage:
    """What a policy may know of a resident model.

    freed_bytes: what evicting it alone would free, its graph included when nobody else holds it
    reload_s: seconds its last load took, without waiting for room
    last_used: when its last lease began or ended, on the cache's clock
    uses: leases since it became resident
    """

    key: ModelKey
    freed_bytes: int
    reload_s: float
    last_used: float
    uses: int


class Policy(Protocol):
    """Ranks the models that may be evicted. Must not block: it runs on the event loop."""

    def order(self, candidates: Sequence[Usage], now: float) -> Sequence[Usage]:
        """Return all `candidates`, the first to go first."""


class LRU:
    """The least recently used model goes first."""

    def order(self, candidates: Sequence[Usage], now: float) -> Sequence[Usage]:
        """Return all `candidates`, the longest unused first."""
        return sorted(candidates, key=lambda usage: usage.last_used)
