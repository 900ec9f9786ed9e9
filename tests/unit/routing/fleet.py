"""A view over replicas that a test describes."""

from serve_app.routing.fleet_view import FleetView, ReplicaState, Sent
from serve_app.routing.stats import RoutingStats

GIB = 2**30
LIMIT = 64
"""Requests that a replica takes at once."""


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return it in seconds."""
        return self.now


class Fleet:
    """A view over replicas that a test describes, and their queues, all of others' requests."""

    def __init__(self, *ids: str) -> None:
        self.clock = Clock()
        self.view = FleetView(clock=self.clock)
        self.models: dict[str, set[str]] = {id_: set() for id_ in ids}
        self.stats: dict[str, RoutingStats] = {id_: stats() for id_ in ids}
        self.queues: dict[str, int] = {}
        self.asked = 0
        self.serial = 0
        self.tell()

    def tell(self) -> None:
        """Broadcast everything."""
        self.view.update(
            [
                ReplicaState(id_, frozenset(models), self.stats[id_], LIMIT)
                for id_, models in self.models.items()
            ]
        )

    def queue_len(self, id_: str) -> int | None:
        """As Ray's cache of queue lengths."""
        self.asked += 1
        return self.queues.get(id_)

    def waiting(self, id_: str) -> int:
        """Return how many requests the view takes a replica to have."""
        return self.view._waiting(self.view._replicas[id_], self.queue_len)

    def rank(self, model: str) -> list[list[str]]:
        """Rank for a model, once all queues are known."""
        for id_, queue_len in self.queues.items():
            self.view.accepted(id_, queue_len, Sent(0, self.clock()))
        return self.view.rank(model, self.queue_len)

    def send(self, model: str) -> str:
        """Send a request as the ranking says; return where it went."""
        ranked = self.rank(model)
        first = next(r for rank in ranked for r in rank if self.queues.get(r, 0) < LIMIT)
        self.serial += 1
        self.view.sent(model, first, str(self.serial))
        return first

    def copies(self, model: str) -> int:
        """Return how many copies of a model there should be."""
        return self.view._demand.copies(model, self.clock())

    def complete_all(self) -> None:
        """End every request."""
        for serial in range(1, self.serial + 1):
            self.view.completed(str(serial))


def stats(**changed: object) -> RoutingStats:
    """A replica with room, 0.03 s for a request and 0.3 s for a load."""
    fields = {"budget_bytes": GIB, "free_bytes": GIB, "request_s": 0.03, "load_s": 0.3}
    return RoutingStats(**{**fields, **changed})  # type: ignore[arg-type]
