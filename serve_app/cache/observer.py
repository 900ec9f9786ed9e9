"""What the cache tells to whoever wants to count it or to advertise its models."""

from collections.abc import Collection, Mapping
from typing import Literal, Protocol

from serve_app.types import ModelKey

Outcome = Literal["hit", "waited", "missed"]
EvictionReason = Literal["budget", "max_models", "unloaded", "reconfigured", "shutdown"]


class CacheObserver(Protocol):
    """Receives the cache's events. Called amid decisions, so it must neither raise nor block."""

    def requested(self, key: ModelKey, outcome: Outcome) -> None:
        """Someone asked for `key`: it was resident, had to be waited for, or began its load.

        Not told of `ModelCache.load`: pins, preloads and second copies are no requests.
        """

    def loaded(self, key: ModelKey, seconds: float, phases_s: Mapping[str, float]) -> None:
        """`key` became resident; `seconds` of work, without waiting for a turn or for room."""

    def load_failed(self, key: ModelKey, error: Exception) -> None:
        """The load of `key` ended in `error`; a load that nobody wanted any more is not told."""

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """`key` is being closed."""

    def changed(self, keys: Collection[ModelKey]) -> None:
        """The set of models that are resident or loading is now `keys`."""


class NullObserver:
    """Listens to nothing."""

    def requested(self, key: ModelKey, outcome: Outcome) -> None:
        """Do nothing."""

    def loaded(self, key: ModelKey, seconds: float, phases_s: Mapping[str, float]) -> None:
        """Do nothing."""

    def load_failed(self, key: ModelKey, error: Exception) -> None:
        """Do nothing."""

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Do nothing."""

    def changed(self, keys: Collection[ModelKey]) -> None:
        """Do nothing."""
