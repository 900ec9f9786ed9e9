"""What a router knows of the replicas, and which one it prefers for a model. Pure.

What can be worked out when the replicas' state arrives is: a decision then looks at the few
replicas that hold the model, or at the first places of the ring where none does.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from serve_app.hashing import rendezvous
from serve_app.routing.demand import Demand
from serve_app.routing.in_flight import InFlight
from serve_app.routing.ring import Ring
from serve_app.routing.scoring import Costs, RoutingConfig, Typical, swap_s
from serve_app.routing.stats import RoutingStats

QueueLen = Callable[[str], int | None]
"""Requests that a replica has, None where that is not known."""

_RANKED = 3
"""Single replicas ahead of the last rank; each is asked only if those before it are full."""
_ASKED = 2
"""Replicas of the last rank where all are known to be full..."""
_ASK_S = 0.25
"""...but for once in so long, when all are asked: what is known of them may be out of date."""
_MANY = 6
"""Open requests of one router below which a model is never called hot."""
_NOTHING_TOLD = RoutingStats()
_REMEMBERED = 4096
"""Models whose places are kept at hand."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica as Ray broadcasts it; `models` are resident or loading."""

    id: str
    models: frozenset[str]
    stats: RoutingStats
    max_ongoing: int


class Sent(NamedTuple):
    """How many requests of this router a replica had as one was sent there, that one included."""

    own: int
    at: float


class _Replica:
    """A replica's state with what follows from it."""

    __slots__ = ("costs", "id", "max_ongoing", "state", "stats")

    def __init__(self, state: ReplicaState, typical: Typical, config: RoutingConfig) -> None:
        self.state = state
        self.id = state.id
        self.stats = state.stats
        self.max_ongoing = state.max_ongoing
        self.costs = Costs.of(state.stats, typical, config)


_NOBODY: list[_Replica] = []


def _completed(told: ReplicaState, known: ReplicaState) -> ReplicaState:
    """Return what a replica is now, where Ray tells less than it did.

    A controller that was started again knows no statistics until it has asked for them, and no ids
    until the replica's next change. Models would be loaded elsewhere, and evict others, while they
    are where they were.
    """
    if told.models or not known.models:
        return told
    if told.stats == _NOTHING_TOLD:
        return replace(told, models=known.models, stats=known.stats)
    # A mean size is told of models that are there.
    return replace(told, models=known.models) if told.stats.model_bytes else told


class FleetView:
    """Ranks replicas; belongs to one event loop."""

    def __init__(
        self,
        config: RoutingConfig = RoutingConfig(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with no replicas."""
        self._config = config
        self._clock = clock
        self._demand = Demand(config)
        self._typical = Typical.of((), config)
        self._in_flight = InFlight(config.visible_s, config.in_flight_s)
        self._replicas: dict[str, _Replica] = {}
        self._everyone: list[str] = []
        self._roomy: list[_Replica] = []
        self._asked_at = -math.inf
        self._holders: dict[str, list[_Replica]] = {}
        self._in_order_now: set[str] = set()
        self._weights: dict[str, int] = {}
        self._ring = Ring({})
        self._places: dict[str, tuple[str, ...]] = {}
        self._turn = 0

    # --- what is told ---------------------------------------------------------------------------

    def update(self, replicas: Sequence[ReplicaState]) -> None:
        """Take the state of all replicas; those that are missing are away, and may come back."""
        now = self._clock()
        for replica_id in self._replicas.keys() - {state.id for state in replicas}:
            self._in_flight.away(replica_id)
        before, self._replicas = self._replicas, {}
        states = [
            _completed(told, before[told.id].state) if told.id in before else told
            for told in replicas
        ]
        typical = Typical.of((state.stats for state in states), self._config)
        is_news, self._typical = typical != self._typical, typical
        for state in states:
            known = before.get(state.id)
            if known is None or known.state != state or is_news:
                known = _Replica(state, typical, self._config)
            self._replicas[state.id] = known
        self._index()
        self._in_flight.expire(now)
        for model, replica_id in self._in_flight.expecting():
            if model in self._replicas[replica_id].state.models:
                self._in_flight.arrived(model, replica_id)
        self._demand.observe(self._busy(), len(self._replicas), now)

    def gone(self, replica_id: str) -> None:
        """Drop a replica at once."""
        if self._replicas.pop(replica_id, None) is not None:
            self._in_flight.away(replica_id)
            self._index()

    def sent(self, model: str, replica_id: str, request_id: str) -> Sent:
        """Take in a request that goes to a replica; return what `accepted` is to be told of it."""
        replica, now = self._replicas.get(replica_id), self._clock()
        if replica is not None:
            new = model not in replica.state.models
            self._in_flight.sent(model, replica_id, request_id, now, new=new)
        return Sent(self._in_flight.at_replica(replica_id), now)

    def accepted(self, replica_id: str, queue_len: int, sent: Sent) -> None:
        """Take in how long a queue was when a request was accepted that was `sent` a moment before.

        That may be told much later, with the answer.
        """
        if replica_id in self._replicas:
            self._in_flight.told(replica_id, queue_len, sent.own, sent.at)

    def completed(self, request_id: str, replica_id: str | None = None) -> None:
        """Take in that a request has ended; at `replica_id` where several share the id."""
        self._in_flight.completed(request_id, replica_id)

    # --- what is asked --------------------------------------------------------------------------

    def rank(self, model: str, queue_len: QueueLen) -> list[list[str]]:
        """Return replica ids, the best rank first; the last rank names all that may do.

        Ranks between have one replica each: whoever takes the first that is not full follows the
        ranking. Where all are full, the last rank names a few in turn, and now and then all of
        them.
        """
        if not self._replicas:
            return []
        now = self._clock()
        self._in_flight.expire(now)
        self._turn += 1  # who comes first among equals
        holders = self._in_order(model)
        copies = self._demand.copies(model, now)
        choice, full = self._by_cost(model, holders[:copies], queue_len)
        # What is known of a queue may be out of date: a replica that has the model is asked, full
        # or not, before another one has to load it.
        ranked = [] if choice or not full else [self._few(full, _RANKED)]
        if choice and min(choice)[0] > self._config.backlog_s:
            # A copy too many costs nothing to use: it is pinned, or has not been evicted yet.
            choice += self._by_cost(model, holders[copies:], queue_len)[0]
            copies = self._pressed(model, holders, copies)
        if len(holders) < copies or not choice:
            choice += self._others(model, holders, copies, queue_len)
        choice.sort()
        ranked += [[replica_id] for _, _, replica_id in choice[:_RANKED]]
        able = self._able(holders)
        ranked.append(able if choice else self._last_resort(able, queue_len))
        return ranked

    # --- one decision ---------------------------------------------------------------------------

    def _in_order(self, model: str) -> list[_Replica]:
        """Return who has the model, those to be kept first: resident before loading.

        Every router finds the same order, but for what only this one has asked for.
        """
        holders = self._holders.get(model, _NOBODY)
        if len(holders) > 1 and model not in self._in_order_now:
            self._in_order_now.add(model)
            places = self._places_of(model)

            def preference(one: _Replica) -> tuple[bool, int, int]:
                place = places.index(one.id) if one.id in places else len(places)
                return model in one.stats.loading, place, -rendezvous(model, one.id)

            holders.sort(key=preference)
        expected = self._in_flight.expected(model)
        if expected:
            new = [self._replicas[id_] for id_ in expected]
            return holders + [one for one in new if one not in holders]
        return holders

    def _pressed(self, model: str, holders: Sequence[_Replica], copies: int) -> int:
        """Ask for another copy if it is this model that keeps its replicas busy.

        This router's own requests stand for those of all.
        """
        if len(holders) < copies:
            return copies  # those that are wanted already come first
        flight, used = self._in_flight, holders[:copies]
        costs, own = used[0].costs, flight.of_model(model)
        if own < _MANY or own * costs.request_s < costs.load_s:
            return copies
        if 2 * own < sum(flight.at_replica(one.id) for one in used):
            return copies
        if any(self._rest_s(model, one) > 0 for one in used):
            return copies  # they wait for a load: another one would not be there sooner
        return self._demand.pressed(model, len(self._replicas), self._clock())

    def _by_cost(
        self, model: str, holders: Sequence[_Replica], queue_len: QueueLen
    ) -> tuple[list[tuple[float, int, str]], list[str]]:
        """Return (cost, tie, id) of holders that have room, and the ids of the full ones."""
        free, full = [], []
        for place, replica in enumerate(holders):
            waiting = self._waiting(replica, queue_len)
            if waiting >= replica.max_ongoing:
                full.append(replica.id)
                continue
            cost = (waiting + 1) * replica.costs.request_s + self._rest_s(model, replica)
            free.append((cost, (place + self._turn) % len(holders), replica.id))
        return free, full

    def _rest_s(self, model: str, replica: _Replica) -> float:
        """Return what is left of a load that has begun; 0 where the model is resident."""
        asked_at = self._in_flight.expected(model).get(replica.id)
        if asked_at is not None:
            return max(0.0, swap_s(model, replica.stats, replica.costs) + asked_at - self._clock())
        return replica.costs.load_s / 2 if model in replica.stats.loading else 0.0

    def _others(
        self, model: str, holders: Sequence[_Replica], copies: int, queue_len: QueueLen
    ) -> list[tuple[float, int, str]]:
        """Return (cost, tie, id) of replicas beyond those that should hold the model."""
        spare, _ = self._by_cost(model, holders[copies:], queue_len)
        if spare:
            return spare
        # Routers see different queues and should agree on the one place of a model: a queue that
        # is not very long does not count for it. For further copies of a hot model it does.
        ignored_s = 0.0 if copies > 1 else self._config.patience_s
        found: list[tuple[float, int, str]] = []
        for replica in self._next_places(model, holders):
            waiting = self._waiting(replica, queue_len)
            costs = replica.costs
            if waiting < replica.max_ongoing:
                wait_s = max(0.0, (waiting + 1) * costs.request_s - ignored_s)
                cost = wait_s + swap_s(model, replica.stats, costs) + len(found) * costs.away_s
                found.append((cost, len(found), replica.id))
        return found

    def _next_places(self, model: str, holders: Sequence[_Replica]) -> list[_Replica]:
        """Return the first replicas of the ring, or the first that do not have the model.

        Where pinned models leave no room is nobody's place, unless that is so everywhere.
        """
        if not holders:
            return [self._replicas[id_] for id_ in self._places_of(model) if id_ in self._replicas]
        held = {replica.id for replica in holders}
        others = (self._replicas[id_] for id_ in self._ring.walk(model) if id_ not in held)
        with_room = (replica for replica in others if replica.costs.has_room)
        return list(islice(with_room, self._config.further_places))

    def _places_of(self, model: str) -> tuple[str, ...]:
        places = self._places.get(model)
        if places is None:
            if len(self._places) >= _REMEMBERED:
                self._places.clear()
            walk = self._ring.walk(model)
            if self._roomy:
                walk = (id_ for id_ in walk if self._replicas[id_].costs.has_room)
            places = self._places[model] = tuple(islice(walk, self._config.places))
        return places

    def _last_resort(self, able: list[str], queue_len: QueueLen) -> list[str]:
        """Return whom to ask where no place was found; few if all are full and were just asked."""
        now = self._clock()
        if now - self._asked_at < _ASK_S and self._are_full(able, queue_len):
            return self._few(able, _ASKED)
        self._asked_at = now
        return able

    def _able(self, holders: Sequence[_Replica]) -> list[str]:
        """Return who may answer: who has the model, or room for it; everyone if that is nobody."""
        if len(self._roomy) == len(self._replicas):
            return self._everyone
        able = {replica.id: None for replica in (*self._roomy, *holders)}
        return list(able) or self._everyone

    def _are_full(self, ids: Sequence[str], queue_len: QueueLen) -> bool:
        replicas = (self._replicas[id_] for id_ in ids)
        return all(self._waiting(one, queue_len) >= one.max_ongoing for one in replicas)

    def _few(self, ids: Sequence[str], count: int) -> list[str]:
        """Return some, the next ones with every decision."""
        count = min(count, len(ids))
        return [ids[(self._turn * count + place) % len(ids)] for place in range(count)]

    def _waiting(self, replica: _Replica, queue_len: QueueLen) -> int:
        """Return the requests at a replica, those included that it has not told of yet.

        What Ray keeps of a queue counts only where that is full. Requests travel by gRPC, and with
        that it learns with each answer how long the queue was when the request was accepted. After
        a burst that would keep everyone away from a replica that has nothing left to do. Of this
        router's own requests more is known; of what was told, only what others had there is used,
        and that alone makes no replica full: it is asked.
        """
        known = queue_len(replica.id)
        if known is not None and known >= replica.max_ongoing:
            return known
        own = self._in_flight.at_replica(replica.id)
        others = self._in_flight.others_at(replica.id, self._clock())
        return min(own + others, max(own, replica.max_ongoing - 1))

    # --- when replicas change -------------------------------------------------------------------

    def _index(self) -> None:
        self._everyone = list(self._replicas)
        self._holders = {}
        self._in_order_now = set()
        for replica in self._replicas.values():
            for model in replica.state.models:
                self._holders.setdefault(model, []).append(replica)
        roomy = [replica for replica in self._replicas.values() if replica.costs.has_room]
        if [one.id for one in roomy] != [one.id for one in self._roomy]:
            self._places.clear()
        self._roomy = roomy
        weights = {id_: replica.stats.budget_bytes for id_, replica in self._replicas.items()}
        if weights != self._weights:
            self._weights = weights
            self._ring = Ring(weights)
            self._places.clear()

    def _busy(self) -> Mapping[str, float]:
        """Return the share that each hot model takes, of all replicas together."""
        together: dict[str, float] = {}
        for replica in self._replicas.values():
            for model, share in replica.stats.busy.items():
                together[model] = together.get(model, 0.0) + share
        return together
