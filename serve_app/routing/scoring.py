"""What a request costs on a replica, in seconds. Pure.

It waits for the queue, and for the model where that is not there: nothing where it is resident, a
copy where it is parked, a load where its prepared weights are on the node, a fetch elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.routing.stats import RoutingStats, rounded


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How replicas are chosen; times in seconds.

    request_s, load_s: what counts until any replica has measured it
    fetch_factor: a load whose prepared weights are not on the node, over one from them
    parked_factor: the same for weights that are one copy away
    evict_factor: what a load costs others where there is no room left, over a load; less where
        only a part of the model's bytes is missing
    away_factor: by how much of a load another place must be better than the first one: routers
        that see slightly different queues still agree
    places: replicas of the ring that are looked at for a model that nobody holds
    further_places: the same for a further copy
    busy_per_copy: share of a replica that a model may take before it gets another copy
    calm_share: of the load that brought the last copy; below it the copy is given back
    calm_s: for how long the load must be below that
    backlog_s: work that waits at the best of a model's copies before it may get more
    step_s: time between two such steps, each by half of what there are
    patience_s: so much waiting work makes no difference for the one place of a model
    visible_s: for how long a model counts as loading where a request for it was sent
    in_flight_s: after that a request that was never reported as completed is forgotten
    """

    request_s: float = 0.03
    load_s: float = 0.3
    fetch_factor: float = 4.0
    parked_factor: float = 0.1
    evict_factor: float = 4.0
    away_factor: float = 0.4
    places: int = 2
    further_places: int = 3
    busy_per_copy: float = 0.6
    calm_share: float = 0.7
    calm_s: float = 5.0
    backlog_s: float = 0.1
    step_s: float = 0.1
    patience_s: float = 1.0
    visible_s: float = 3.0
    in_flight_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Typical:
    """What counts for a replica that has not measured it itself: the mean of those that have.

    A new replica must seem neither slower nor fuller than the others, or it would stay empty.
    """

    request_s: float
    load_s: float
    model_bytes: float

    @classmethod
    def of(cls, fleet: Iterable[RoutingStats], config: RoutingConfig) -> "Typical":
        """Take the means; where nobody has measured, what the configuration assumes."""
        known = list(fleet)
        return cls(
            request_s=_mean(one.request_s for one in known) or config.request_s,
            load_s=_mean(one.load_s for one in known) or config.load_s,
            model_bytes=_mean(one.model_bytes for one in known),
        )


def _mean(values: Iterable[float]) -> float:
    """Return the mean of those that are known; 0 if none is."""
    known = [value for value in values if value > 0]
    return rounded(sum(known) / len(known)) if known else 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What does not depend on the model, for one replica; times in seconds.

    has_room: whether another model would fit if all but the pinned ones went
    """

    request_s: float
    load_s: float
    fetch_s: float
    parked_s: float
    evict_s: float
    away_s: float
    has_room: bool

    @classmethod
    def of(cls, stats: RoutingStats, typical: Typical, config: RoutingConfig) -> "Costs":
        """Take what the replica has measured, else what is typical."""
        load_s = stats.load_s or typical.load_s
        # A model as large as those that are there may not fit any more.
        next_bytes = stats.model_bytes or typical.model_bytes
        missing = max(0.0, 1 - stats.free_bytes / max(1, next_bytes)) if stats.budget_bytes else 0.0
        is_pinned_full = stats.room_bytes is not None and (
            stats.room_bytes < max(1, typical.model_bytes)
        )
        return cls(
            request_s=stats.request_s or typical.request_s,
            load_s=load_s,
            fetch_s=load_s * config.fetch_factor,
            parked_s=load_s * config.parked_factor,
            evict_s=load_s * config.evict_factor * missing,
            away_s=load_s * config.away_factor,
            has_room=not is_pinned_full,
        )


def swap_s(model: str, stats: RoutingStats, costs: Costs) -> float:
    """Return what it takes to make a model resident where nobody has asked for it yet."""
    if model in stats.parked:
        return costs.parked_s + costs.evict_s
    if stats.prepared is None or model in stats.prepared:
        return costs.load_s + costs.evict_s
    return costs.fetch_s + costs.evict_s
