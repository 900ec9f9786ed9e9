"""Ray Serve's own rules, as in 2.60: `PowerOfTwoChoicesRequestRouter` with `MultiplexMixin`.

What `apply_multiplex_routing` and `choose_replicas` do, step by step;
tests/contracts/test_multiplex_rules.py compares it with Ray's own class.
"""

import random
from collections.abc import Callable, Sequence

from benchmarks.routing.routers import Pending
from serve_app.routing.fleet_view import QueueLen, ReplicaState, Sent

MATCHING_TIMEOUT_S = 1.0


class StockRouting:
    """Ray Serve's: those that hold the model, else those with the fewest, two of them drawn."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        """Begin with no replicas."""
        self._clock = clock
        self._rng = rng
        self._everyone: list[str] = []
        self._holders: dict[str, list[str]] = {}
        self._fewest: list[str] = []
        self._fallback: set[str] = set()

    def update(self, replicas: Sequence[ReplicaState]) -> None:
        """Take the state of all replicas."""
        self._everyone = [replica.id for replica in replicas]
        self._holders = {}
        for replica in replicas:
            for model in replica.models:
                self._holders.setdefault(model, []).append(replica.id)
        fewest = min((len(replica.models) for replica in replicas), default=0)
        self._fewest = [replica.id for replica in replicas if len(replica.models) == fewest]

    def rank(self, pending: Pending, queue_len: QueueLen) -> list[list[str]]:
        """Return one rank of at most two replicas."""
        candidates = self.candidates(pending)
        if len(candidates) <= 2:
            return [list(candidates)] if candidates else []
        return [self._rng.sample(candidates, 2)]

    def candidates(self, pending: Pending) -> Sequence[str]:
        """Return those of which two are drawn; remembers in `pending` what was tried."""
        now, model = self._clock(), pending.request.model.id
        if pending.started_at is None:
            pending.started_at = now
        timeout_s = self._rng.uniform(MATCHING_TIMEOUT_S, 2 * MATCHING_TIMEOUT_S)
        if now - pending.started_at < timeout_s:
            candidates = self._holders.get(model, [])
            if (not candidates and model not in self._fallback) or pending.tried_holders:
                candidates = self._fewest
                self._fallback.add(model)
            elif candidates:
                self._fallback.discard(model)
            pending.tried_holders = True
        elif not pending.tried_fewest:
            candidates = self._fewest
            pending.tried_fewest = True
        else:
            candidates = self._everyone
        return candidates

    def accepted(self, replica_id: str, queue_len: int, sent: Sent) -> None:
        """It has no use for that beside the cache of queue lengths."""

    def sent(self, model: str, replica_id: str, request_id: str) -> None:
        """Do nothing: stock keeps queue lengths only."""

    def completed(self, request_id: str) -> None:
        """Do nothing."""
