"""What the simulation asks of a router, and ours behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.routing.workload import Request
from serve_app.routing.fleet_view import FleetView, QueueLen, ReplicaState, Sent


@dataclass(slots=True, eq=False)
class Pending:
    """A request that a router has not sent yet; the fields below are Ray's routing context.

    started_at: when it was first tried; tried_*: what was tried already
    done: whether it was sent; routing: whether a routing task is at it
    """

    request: Request
    done: bool = False
    routing: bool = False
    started_at: float | None = None
    tried_holders: bool = False
    tried_fewest: bool = False


class Router(Protocol):
    """Ranks replicas for a request."""

    def update(self, replicas: Sequence[ReplicaState]) -> None:
        """Take the state of all replicas, as it was broadcast."""

    def rank(self, pending: Pending, queue_len: QueueLen) -> list[list[str]]:
        """Return replica ids, the best rank first; in a rank, the shortest queue is taken."""

    def sent(self, model: str, replica_id: str, request_id: str) -> Sent | None:
        """Learn of a request that was sent; return what `accepted` is to be told of it."""

    def accepted(self, replica_id: str, queue_len: int, sent: Sent) -> None:
        """Learn how long the queue was when a request was accepted."""

    def completed(self, request_id: str) -> None:
        """Learn that it has ended, or was rejected."""


class FleetRouting:
    """Ours: `serve_app.routing`, with nothing added."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with no replicas."""
        self.view = FleetView(clock=clock)
        self.update = self.view.update
        self.sent = self.view.sent
        self.accepted = self.view.accepted

    def rank(self, pending: Pending, queue_len: QueueLen) -> list[list[str]]:
        """Return replica ids, the best rank first."""
        return self.view.rank(pending.request.model.id, queue_len)

    def completed(self, request_id: str) -> None:
        """Learn that a request has ended."""
        self.view.completed(request_id)
