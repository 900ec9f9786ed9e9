"""What happens in the cache, told to the metrics and to Ray's wrapper."""

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
    ) -> None:
        """`on_change` is told the keys that are resident or loading."""
        self._metrics = metrics
        self._scaling = scaling
        self.changed = on_change

    def requested(self, key: ModelKey, outcome: Literal["hit", "waited", "missed"]) -> None:
        """Count a lookup."""
        self._metrics.lookup(outcome)
        self._scaling.requested(key)

    def loaded(self, key: ModelKey, seconds: float, phases_s: Mapping[str, float]) -> None:
        """Record a load."""
        self._metrics.loaded(seconds, phases_s)

    def load_failed(self, key: ModelKey, error: BaseException) -> None:
        """Count a failed load."""
        self._metrics.load_failed(error.code if isinstance(error, ServeAppError) else "internal")

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Count an eviction."""
        self._metrics.evicted(reason)
        self._scaling.evicted(key, reason)
