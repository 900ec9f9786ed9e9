"""How many replicas there should be. Pure: everything it needs is in its arguments.

Queues say when replicas are too few for the requests. They say nothing of a cache that is too
small: a replica that loads a model for every other request has no queue as long as requests are
few. What says it are regrets: requests for models that had to leave not long ago. So the fleet
grows by its queues, and by its working set while there are regrets; it shrinks only when those who
remain hold the working set and the pinned models.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

REQUESTS = "requests"
"""The reason of a decision that Ray's own policy would have taken too."""
_ALMOST = 1e-6
"""Averages of whole numbers are not whole: a queue of 16.0000001 is one of 16."""


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """The knobs: `policy_kwargs` in serve_config.yaml (docs/scaling.md).

    max_regret_ratio: share of requests that may find their model evicted not long ago
    min_regrets_per_s: fewer than this, over the fleet, are never a reason to grow
    margin: room beyond the working set that must remain when the fleet shrinks, as a share of it
    spread: once the fleet has room for this many working sets, regrets are no reason to grow
    settle_s: after the fleet has changed, how long regrets are no reason to grow once more
    fixed_cluster: whether nothing adds nodes, so that a replica without a place would wait for
        ever; null: only where `make serve` started Ray
    """

    max_regret_ratio: float = 0.05
    min_regrets_per_s: float = 0.05
    margin: float = 0.2
    spread: float = 1.5
    settle_s: float = 15.0
    fixed_cluster: bool | None = None

    def __post_init__(self) -> None:
        for name, at_least in _LEAST.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not at_least <= value < math.inf:
                raise ValueError(f"{name}: {value!r}: write a number, {at_least:g} or more")
        if self.max_regret_ratio > 1:
            raise ValueError(
                f"max_regret_ratio: {self.max_regret_ratio!r}: write a share, such as 0.05"
            )
        if self.fixed_cluster not in (None, True, False):
            raise ValueError(f"fixed_cluster: {self.fixed_cluster!r}: write true, false or null")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Make rules of what was written; raise ValueError naming the key that is wrong."""
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"{key}: unknown key; known keys: {', '.join(known)}")
        return cls(**values)


_LEAST = {
    "max_regret_ratio": 0.0,
    "min_regrets_per_s": 0.0,
    "margin": 0.0,
    "spread": 1.0,
    "settle_s": 0.0,
}


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What one replica says of itself.

    budget_bytes: room for models, without the graphs that they share there
    working_set_bytes: of the models that it is asked for again and again, pinned ones left out
    hot: the bytes of those asked for most, by key; they are part of working_set_bytes
    pinned: what the copies take that are wanted of models pinned here and not everywhere, by key;
        they must move when the replica goes
    pinned_bytes: of such models that are not told by name
    everywhere_bytes: of models that are pinned on every replica
    copies: the most copies that are wanted of any one pinned model
    asked: models that were asked for at all within the window
    requests_per_s, regrets_per_s: of late
    """

    budget_bytes: float
    working_set_bytes: float = 0.0
    hot: Mapping[str, float] = field(default_factory=dict)
    pinned: Mapping[str, float] = field(default_factory=dict)
    pinned_bytes: float = 0.0
    everywhere_bytes: float = 0.0
    copies: float = 0.0
    asked: float = 0.0
    requests_per_s: float = 0.0
    regrets_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known at one moment.

    replicas: those that have reported; they may be fewer than run
    running: replicas that run
    target: replicas that are wanted so far
    least, most: the bounds that the operator set
    requests: running and waiting, over the whole fleet
    target_requests: how many of them are right for one replica
    settled: whether the fleet has been as it is for long enough to judge it by its regrets
    """

    replicas: Sequence[ReplicaLoad]
    running: int
    target: int
    least: int
    most: int
    requests: float
    target_requests: float
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Outgrown:
    """A number of replicas that was too small for a working set of so many bytes."""

    replicas: int
    bytes: float


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be, why, and what was learnt for the next decision."""

    replicas: int
    reason: str
    outgrown: Outgrown | None = None


def union_bytes(replicas: Sequence[ReplicaLoad]) -> float:
    """Return the bytes of the fleet's working set, with copies of hot models counted once.

    Copies are recognised among the models that are told by name, and only models that are asked
    for often have copies. Where that is not so the sum is too large, never too small.
    """
    rest = sum(max(0.0, one.working_set_bytes - sum(one.hot.values())) for one in replicas)
    return rest + _distinct_bytes(one.hot for one in replicas)


def pinned_bytes(replicas: Sequence[ReplicaLoad]) -> float:
    """Return the bytes of all copies that are wanted of pinned models, those everywhere left out.

    As many as are wanted, and not as there are: before a replica goes there may be more.
    """
    rest = sum(one.pinned_bytes for one in replicas)
    return rest + _distinct_bytes(one.pinned for one in replicas)


def _distinct_bytes(parts: Iterable[Mapping[str, float]]) -> float:
    largest: dict[str, float] = {}
    for part in parts:
        for key, size in part.items():
            largest[key] = max(size, largest.get(key, 0.0))
    return sum(largest.values())


def replicas_needed(
    budgets: Sequence[float],
    *,
    working_set_bytes: float,
    pinned_bytes: float = 0.0,
    everywhere_bytes: float = 0.0,
    margin: float = 0.0,
) -> int:
    """Return the least number of replicas that hold all this, whichever of them they are.

    Ray chooses which replica goes, so the smallest are reckoned with. Beyond those that there are,
    a further one counts as the smallest.

    Args:
        budgets: bytes for models of each replica, in any order
        working_set_bytes: of distinct models that should stay in memory
        pinned_bytes: of pinned copies, each counted as often as it is wanted
        everywhere_bytes: of models that are pinned on every replica
        margin: further room, as a share of the working set

    Returns:
        0 if there is nothing to hold; else 1 or more. With budgets too small for anything beside
        what is pinned everywhere, one more than there are: more replicas might bring larger ones.
    """
    need = working_set_bytes * (1 + margin) + pinned_bytes
    if need <= 0:
        return 1 if everywhere_bytes > 0 else 0
    rooms = sorted(max(0.0, budget - everywhere_bytes) for budget in budgets)
    for count, room in enumerate(rooms, start=1):
        need -= room
        if need <= 0:
            return count
    if not rooms or rooms[0] <= 0:
        return len(rooms) + 1
    return len(rooms) + math.ceil(need / rooms[0])


def is_thrashing(replicas: Sequence[ReplicaLoad], rules: ScalingRules) -> bool:
    """Return whether models leave that are asked for again soon, often enough to matter."""
    regrets = sum(one.regrets_per_s for one in replicas)
    requests = sum(one.requests_per_s for one in replicas)
    return (
        regrets >= max(rules.min_regrets_per_s, rules.max_regret_ratio * requests) and regrets > 0
    )


def by_queue(fleet: Fleet) -> int:
    """Return how many replicas the requests need, as Ray's own policy reckons.

    But the last replica is kept by whether models are asked for: what Ray counts as requests are
    also questions after the state of replicas, which never end, and a request of now and then is
    mostly not running when Ray looks.
    """
    if fleet.target_requests <= 0:
        return fleet.target
    count = max(0, math.ceil(fleet.requests / fleet.target_requests - _ALMOST))
    if count > 1 or len(fleet.replicas) < fleet.running:
        return count
    return int(any(one.asked > 0 for one in fleet.replicas))


def decide(fleet: Fleet, rules: ScalingRules, outgrown: Outgrown | None = None) -> Decision:
    """Return how many replicas there should be.

    `outgrown` is what the last decision returned: the fleet does not shrink again to a number that
    proved too small, unless the working set has become smaller than it was then.
    """
    queue = by_queue(fleet)
    wanted, reason, learnt = queue, REQUESTS, outgrown
    if fleet.replicas:
        cache, why, learnt = _by_working_set(fleet, rules, outgrown)
        if cache > wanted:
            wanted, reason = cache, why
        if (copies := _by_copies(fleet.replicas)) > wanted:
            wanted, reason = copies, "pinned copies"
    # Of those that run: one that never started holds nothing that would be missed.
    one_less = min(fleet.target, fleet.running) - 1
    if wanted < one_less and _is_in_use(fleet.replicas):
        wanted, reason = one_less, "one at a time"
    if wanted < fleet.least:
        wanted, reason = fleet.least, "min_replicas"
    if wanted > fleet.most:
        wanted, reason = fleet.most, "max_replicas"
    return Decision(wanted, reason, learnt)


def _is_in_use(replicas: Sequence[ReplicaLoad]) -> bool:
    """Return whether models would be missed if several replicas went together.

    Before one goes, what is hot or pinned has a second copy, where `spare_copies_after_s` says so
    (serve_app.fleet.keeper). Of two that went at once each might have one of the two; so there is a
    `downscale_delay_s` between them.
    """
    return any(
        one.asked > 0 or one.pinned or one.pinned_bytes > 0 or one.everywhere_bytes > 0
        for one in replicas
    )


def _by_working_set(
    fleet: Fleet, rules: ScalingRules, outgrown: Outgrown | None
) -> tuple[int, str, Outgrown | None]:
    """Return how many replicas the models need, why, and what was learnt."""
    replicas = fleet.replicas
    union = union_bytes(replicas)
    pinned = pinned_bytes(replicas)
    everywhere = max(one.everywhere_bytes for one in replicas)
    budgets = [one.budget_bytes for one in replicas]
    budgets += [min(budgets)] * (fleet.running - len(budgets))

    def needed(margin: float) -> int:
        return replicas_needed(
            budgets,
            working_set_bytes=union,
            pinned_bytes=pinned,
            everywhere_bytes=everywhere,
            margin=margin,
        )

    if is_thrashing(replicas, rules):
        if not fleet.settled:
            return fleet.target, "regrets, but the fleet has just changed", outgrown
        # What fits by its sum may not fit by its parts: one replica more, within bounds.
        uneven = needed(rules.spread - 1) > fleet.running
        grown = max(needed(0.0), fleet.running + 1 if uneven else 0)
        if grown > fleet.running:
            return grown, "regrets", Outgrown(fleet.running, union)
        return fleet.target, "regrets, but room enough", outgrown
    if outgrown is not None and not 0 < outgrown.bytes <= union * (1 + rules.margin):
        outgrown = None
    keep = needed(rules.margin)
    if outgrown is not None and keep <= outgrown.replicas:
        keep = outgrown.replicas + 1
    if keep == 1:
        keep = 0  # the last replica is kept by requests and pins, not by memories of requests
    return min(keep, fleet.target), "the working set", outgrown


def _by_copies(replicas: Sequence[ReplicaLoad]) -> int:
    """Return how many replicas pinned models need to be as often in memory as is wanted."""
    some = any(one.pinned or one.pinned_bytes > 0 or one.everywhere_bytes > 0 for one in replicas)
    return max(int(some), *(int(one.copies) for one in replicas))
