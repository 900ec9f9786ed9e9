"""How many copies of a model there should be: one, unless its load asks for more. Pure.

The shares that replicas report are the same for every router, so that routers agree; a backlog of
this router's own only makes it notice sooner. Copies come at once and go one at a time after a
calm while.
"""

import math
from collections.abc import Mapping

from serve_app.routing.scoring import RoutingConfig


class _Wanted:
    """Copies of a model that has more than one, and the share that it took when last told."""

    __slots__ = ("calm_since", "copies", "raised_at", "share")

    def __init__(self, copies: int, share: float, now: float) -> None:
        self.copies = copies
        self.share = share
        self.raised_at = now
        self.calm_since: float | None = None


class Demand:
    """Remembers only models that want more than one copy."""

    def __init__(self, config: RoutingConfig) -> None:
        """Every model wants one copy until told otherwise."""
        self._config = config
        self._wanted: dict[str, _Wanted] = {}

    def copies(self, model: str, now: float) -> int:
        """Return how many copies there should be."""
        wanted = self._wanted.get(model)
        if wanted is None:
            return 1
        # Nothing is told as long as nothing changes, and calm is when nothing does.
        self._calm(model, wanted, now)
        return wanted.copies

    def observe(self, busy: Mapping[str, float], most: int, now: float) -> None:
        """Take in the shares of all replicas together, by model, of `most` replicas."""
        for model, share in busy.items():
            needed = min(most, math.ceil(share / self._config.busy_per_copy - 1e-9))
            wanted = self._wanted.get(model)
            if needed > (1 if wanted is None else wanted.copies):
                self._wanted[model] = _Wanted(needed, share, now)
        for model, wanted in list(self._wanted.items()):
            wanted.share = busy.get(model, 0.0)
            wanted.copies = min(wanted.copies, max(1, most))
            self._calm(model, wanted, now)

    def pressed(self, model: str, most: int, now: float) -> int:
        """Take in that work for a model piles up at its copies; return how many it should have."""
        wanted = self._wanted.get(model)
        if wanted is None:
            if most > 1:
                self._wanted[model] = _Wanted(2, 0.0, now)
            return min(2, most)
        wanted.calm_since = None
        if now - wanted.raised_at >= self._config.step_s:
            wanted.copies = min(most, wanted.copies + (wanted.copies + 1) // 2)
            wanted.raised_at = now
        return wanted.copies

    def _calm(self, model: str, wanted: _Wanted, now: float) -> None:
        """Give copies back, one for each while that the load has been well below what they take."""
        config = self._config
        while wanted.copies > 1:
            if wanted.share > (wanted.copies - 1) * config.busy_per_copy * config.calm_share:
                wanted.calm_since = None
                return
            if wanted.calm_since is None:
                wanted.calm_since = now
            if now - wanted.calm_since < config.calm_s:
                return
            wanted.copies -= 1
            wanted.calm_since += config.calm_s
        del self._wanted[model]
