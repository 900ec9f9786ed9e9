"""What a replica tells the autoscaler: its working set, its room and what it lacks."""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set

from serve_app.cache.observer import EvictionReason
from serve_app.metrics import Metrics
from serve_app.scaling.reports import PinnedModel, to_report
from serve_app.scaling.working_set import WorkingSet, WorkingSetState
from serve_app.types import Copies, ModelKey, ResidentModel

_FOR_ROOM: frozenset[EvictionReason] = frozenset({"budget", "max_models", "reconfigured"})
"""Evictions that more room would have spared."""

SHOW_EVERY_S = 1.0
"""How often the gauge is set beside the reports at most: summing up thousands of models costs."""


class AutoscalingStats:
    """Follows the cache's events; belongs to the replica's event loop."""

    def __init__(
        self, metrics: Metrics, window_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count regrets in `metrics`; requests count for `window_s` seconds."""
        self._metrics = metrics
        self._clock = clock
        self._working_set = WorkingSet(window_s)
        self._shown_at = -math.inf

    def configure(self, window_s: float) -> None:
        """Take a new window; a change begins a new count."""
        if window_s != self._working_set.window_s:
            self._working_set = WorkingSet(window_s)

    def requested(self, key: ModelKey) -> None:
        """Count a request."""
        if self._working_set.asked(str(key), self._clock()):
            self._metrics.regretted()

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Remember an eviction."""
        if reason in _FOR_ROOM:
            self._working_set.evicted(str(key), self._clock())

    def sized(self, models: Sequence[ResidentModel]) -> None:
        """Learn the bytes of models in memory; to be called on every change, while they are."""
        for model in models:
            self._working_set.sized(model.key, model.bytes)
        if self._clock() - self._shown_at >= SHOW_EVERY_S:
            self._state(models)

    def report(
        self,
        models: Sequence[ResidentModel],
        *,
        used_bytes: int,
        budget_bytes: int,
        max_models: int | None,
        wanted: Mapping[str, Copies],
        second: Set[str] = frozenset(),
    ) -> dict[str, float]:
        """Return what the policy reads, see serve_app.scaling.reports.

        Graphs are shared by the models of a replica, and each replica has its own: they take from
        its room, and are no part of what models need. Where `max_models` binds before the bytes
        do, it is the room: a budget of so many of the models that are in memory now.

        Args:
            models: in memory
            used_bytes: what they and their graphs take
            budget_bytes: the memory budget
            max_models: the cap on their number
            wanted: the copies of each pinned model that the fleet should hold
            second: pinned models that are here as copies beyond that: the fleet needs no room for
                what is only there so that it can shrink
        """
        self.sized(models)
        own = sum(model.bytes for model in models)
        pinned = [
            PinnedModel(model.key, model.bytes, wanted.get(model.key))
            for model in models
            if model.pinned and model.key not in second
        ]
        state = self._state(models)
        room = max(0, budget_bytes - max(0, used_bytes - own))
        resident = sum(model.bytes > 0 for model in models)
        if max_models is not None and resident:
            room = min(room, own * max_models // resident)
        return to_report(state, room, pinned)

    def _state(self, models: Sequence[ResidentModel]) -> WorkingSetState:
        """Return the working set without what is pinned, and set the gauge to it."""
        self._shown_at = self._clock()
        pinned = {model.key for model in models if model.pinned}
        state = self._working_set.state(self._shown_at, without=pinned)
        self._metrics.working_set(state.bytes)
        return state
