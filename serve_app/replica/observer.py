"""What happens in the cache, told to the metrics, to Ray's wrapper and to the replica's health."""

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from serve_app.cache.observer import EvictionReason
from serve_app.errors import ServeAppError
from serve_app.metrics import Metrics
from serve_app.replica.autoscaling_stats import AutoscalingStats
from serve_app.types import ModelKey


class ReplicaObserver:
    """Follows the cache's events; see serve_app.cache.observer for when each is called."""

    def __init__(
        self,
        metrics: Metrics,
        on_change: Callable[[Collection[ModelKey]], None],
        scaling: AutoscalingStats,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Tell everyone concerned.

        Args:
            metrics: count
            on_change: is told the keys that are resident or loading
            scaling: what the autoscaler will be told
            on_failure: is told what loads end in, also those that nobody waits for any more
        """
        self._metrics = metrics
        self._scaling = scaling
        self._on_failure = on_failure
        self.changed = on_change

    def requested(self, key: ModelKey, outcome: Literal["hit", "waited", "missed"]) -> None:
        """Count a lookup."""
        self._metrics.lookup(outcome)
        self._scaling.requested(key)

    def loaded(self, key: ModelKey, seconds: float, phases_s: Mapping[str, float]) -> None:
        """Record a load."""
        self._metrics.loaded(seconds, phases_s)

    def load_failed(self, key: ModelKey, error: BaseException) -> None:
        """Count a failed load, and have its error looked at: it may be the device's."""
        self._metrics.load_failed(
            error.code if isinstance(error, ServeAppError) else "internal_error"
        )
        self._on_failure(error)

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Count an eviction."""
        self._metrics.evicted(reason)
        self._scaling.evicted(key, reason)
