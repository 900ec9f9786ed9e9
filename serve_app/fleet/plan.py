"""Which replica is to hold which pinned model: from reports to orders, without a memory. Pure.

Whoever sees the same reports comes to the same plan, so any number of ingress replicas may plan.
A model stays where it is pinned, else goes where it is in memory, else where rendezvous hashing
puts it; so a plan that has been carried out stays as it is.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto

from serve_app.fleet.pins import more_of
from serve_app.hashing import rendezvous
from serve_app.types import Copies, Pin, ReplicaReport, ResidentModel

HOT_S = 15.0
"""A model counts as hot for so long after its last use."""

Placing = Mapping[str, frozenset[str]]
"""For each replica id the model keys that it is to hold."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What all replicas are told; each takes what stands under its own id.

    pins: the table that these orders follow; a replica that knows of a later pin ignores the rest
    pinned: what each replica is to hold and never to evict
    second: those of `pinned` that are more copies than are wanted, before a replica goes
    spare: what each replica is to load, as a second copy that may be evicted again
    """

    pins: tuple[Pin, ...]
    pinned: Placing
    second: Placing = field(default_factory=dict)
    spare: Placing = field(default_factory=dict)


def configured_in(reports: Iterable[ReplicaReport]) -> dict[str, Copies]:
    """Return what `user_config` wants, as the replicas have it."""
    configured: dict[str, Copies] = {}
    for report in reports:
        for key, copies in report.configured.items():
            configured[key] = more_of(copies, configured.get(key, 0))
    return dict(sorted(configured.items()))


class Seconds(Enum):
    """What is to become of second copies of models that are pinned once."""

    NONE = auto()
    KEEP = auto()
    MAKE = auto()


def plan(
    reports: Sequence[ReplicaReport],
    wanted: Mapping[str, Copies],
    seconds: Seconds = Seconds.NONE,
) -> dict[str, frozenset[str]]:
    """Return the pinned models of each replica.

    Args:
        reports: of all replicas
        wanted: copies of each pinned model; the first has precedence where room is short
        seconds: of models of which one copy is wanted
    """
    places = _Places(reports)
    there = {key for report in reports for key in report.second_copies}
    for key, copies in wanted.items():
        if copies is None:
            for report in reports:
                places.take(key, report)
    for key, copies in wanted.items():
        if copies is not None:
            gets_second = seconds is Seconds.MAKE or (seconds is Seconds.KEEP and key in there)
            count = max(copies, 2) if gets_second else copies
            for report in places.best(key)[:count]:
                places.take(key, report)
    return _frozen(places.taken)


def second_copies(
    reports: Sequence[ReplicaReport], planned: Placing, wanted: Mapping[str, Copies]
) -> dict[str, frozenset[str]]:
    """Return those of the `planned` models that are more copies than are wanted."""
    found: dict[str, set[str]] = {report.replica_id: set() for report in reports}
    for key, copies in wanted.items():
        has = [report for report in reports if key in planned[report.replica_id]]
        if copies is not None and len(has) > copies:
            # One that is there already stays what it is.
            has.sort(key=lambda report: (key not in report.pinned, key in report.second_copies))
            for report in has[copies:]:
                found[report.replica_id].add(key)
    return _frozen(found)


def best_places(reports: Sequence[ReplicaReport], key: str) -> list[str]:
    """Return all replicas in the order in which to try `key`: last those where it has no room."""
    places = _Places(reports)
    for report in reports:
        for pinned in report.pinned:
            if pinned != key:
                places.take(pinned, report)
    fitting = [report.replica_id for report in places.best(key)]
    return fitting + [r.replica_id for r in reports if r.replica_id not in fitting]


def spares(reports: Sequence[ReplicaReport], planned: Placing) -> dict[str, frozenset[str]]:
    """Return second copies of hot models that are on one replica only, where there is room.

    The one used last comes first. Caches are mostly full, so what nobody asked for within the
    window of the working set gives way; what is asked for more often than that never does, or
    copies would cost more loads than a replica that goes.
    """
    hot = _hot(reports)
    kept = {model.key for model in hot}
    room = {
        report.replica_id: _room_beside(report, kept | planned.get(report.replica_id, set()))
        for report in reports
    }
    copies: dict[str, set[str]] = {}
    for report in reports:
        for key in {model.key for model in report.models} | planned.get(report.replica_id, set()):
            copies.setdefault(key, set()).add(report.replica_id)
    chosen: dict[str, set[str]] = {}
    for model in hot:
        key = model.key
        if len(copies[key]) > 1:
            continue
        for name in sorted(room, key=lambda name: rendezvous(key, name), reverse=True):
            if name not in copies[key] and room[name].take(model.bytes):
                chosen.setdefault(name, set()).add(key)
                break
    return _frozen(chosen)


def gives_way_after_s(window_s: float) -> float:
    """Return how long a model must be idle to give way to a second copy of another.

    Args:
        window_s: `working_set_window_s`
    """
    return max(HOT_S, window_s)


def _frozen(placing: Mapping[str, Set[str]]) -> dict[str, frozenset[str]]:
    return {name: frozenset(keys) for name, keys in placing.items()}


def _hot(reports: Iterable[ReplicaReport]) -> list[ResidentModel]:
    """Return the models that were used lately, the last used first."""
    found = (
        model
        for report in reports
        for model in report.models
        if model.state == "resident" and model.idle_s <= HOT_S
    )
    return sorted(found, key=lambda model: (model.idle_s, model.key))


@dataclass(slots=True)
class _Room:
    """What one replica has left."""

    free_bytes: int
    count: int
    max_models: int | None

    def allows(self, size: int) -> bool:
        enough = self.max_models is None or self.count < self.max_models
        return enough and size <= self.free_bytes

    def take(self, size: int) -> bool:
        """Take room for one more model if there is any."""
        if not self.allows(size):
            return False
        self.free_bytes -= size
        self.count += 1
        return True


def _room_beside(report: ReplicaReport, kept: Set[str]) -> _Room:
    """Return the room of a replica once all has left that may give way and is not `kept`."""
    idle_s = gives_way_after_s(report.working_set_window_s)
    leaves = [
        model.bytes
        for model in report.models
        if model.state == "resident"
        and model.idle_s > idle_s
        and not (model.pinned or model.leases or model.key in kept)
    ]
    free_bytes = report.budget_bytes - report.used_bytes + sum(leaves)
    return _Room(free_bytes, len(report.models) - len(leaves), report.max_models)


class _Places:
    """The replicas with the room that pinned models leave; whatever is not pinned gives way."""

    def __init__(self, reports: Sequence[ReplicaReport]) -> None:
        self.taken: dict[str, set[str]] = {report.replica_id: set() for report in reports}
        self._reports = reports
        self._room = {
            report.replica_id: _Room(report.budget_bytes, 0, report.max_models)
            for report in reports
        }
        self._held = {
            report.replica_id: {m.key for m in report.models if m.state != "evicting"}
            for report in reports
        }
        self._bytes: dict[str, int] = {}
        for report in reports:
            for model in report.models:
                self._bytes[model.key] = max(model.bytes, self._bytes.get(model.key, 0))

    def best(self, key: str) -> list[ReplicaReport]:
        """Return the replicas with room for `key`, the best first."""
        size = self._bytes.get(key, 0)  # of one that was never loaded nothing is known

        def rank(report: ReplicaReport) -> tuple[bool, bool, bool, int]:
            return (
                key in report.pin_errors,
                key not in report.pinned,
                key not in self._held[report.replica_id],
                -rendezvous(key, report.replica_id),
            )

        fitting = (report for report in self._reports if self._fits(report, size))
        return sorted(fitting, key=rank)

    def _fits(self, report: ReplicaReport, size: int) -> bool:
        return self._room[report.replica_id].allows(size)

    def take(self, key: str, report: ReplicaReport) -> None:
        """Put `key` on a replica, whether it fits or not."""
        self.taken[report.replica_id].add(key)
        room = self._room[report.replica_id]
        room.free_bytes -= self._bytes.get(key, 0)
        room.count += 1
