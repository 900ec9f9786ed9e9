"""The request router that Ray Serve runs in every process that calls the detectors.

It translates: Ray's replicas and requests into a `FleetView`, the view's ranking into Ray's. Ray
asks the first replica of the ranking for a place, and the next one only if that is full.

Written against Ray 2.60 (`ray/serve/_private/request_router/request_router.py`). What the public
class leaves to private names, each held by tests/contracts/test_request_router.py:

- `_fulfill_next_pending_request` is overridden: a replica that was chosen for one request goes to
  that request and to no other. The base class looks the request up by an id that calls of one
  parent share, and would leave all but one of them waiting for ever.
- `_add_pending_request_to_indices` and `_remove_pending_request_from_indices` are overridden: what
  is looked up by task needs no index, and the base class's would keep every request with a model
  id. The first is also the only word, in its caller's context, of a request that was taken back
  from a replica; the second the only one of a request that was cancelled after its choice.
- `_record_queue_wait_time` and `_replicas` are used as the base class uses them.

Ray pickles this module by value, so it must stay free of what cannot be pickled, and of torch.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.routing.fleet_view import FleetView, ReplicaState, Sent
from serve_app.routing.recipient import Ask, Recipient, StalledError, note
from serve_app.routing.scoring import RoutingConfig
from serve_app.routing.silent import Late, Silent
from serve_app.routing.stats import RoutingStats

_PROBE_S = 2.0
"""What Ray is told of the patience with a probe; who probes ends it."""
_STALLED_S = 4.0
"""A replica whose engine is late by so much is left by its calls: longer than it takes to trace a
large model for a new shape of pictures, which they would only wait for again elsewhere. And ten
times what the step was expected to take, in any case. New calls go elsewhere as soon as it is."""


class FleetRouter(RequestRouter):
    """Sends each request to the replica where it costs least; see serve_app.routing.fleet_view."""

    # Of a replica that is asked how full it is, since nothing was heard of it lately. It shares its
    # cores with its models; by Ray's 0.1 s it would be late too often, and where a model is already
    # would not be where the request goes.
    queue_len_response_deadline_s = 0.5
    max_queue_len_response_deadline_s = 1.0

    def initialize_state(self, **settings: float) -> None:
        """Take `request_router_kwargs`: any field of RoutingConfig.

        Raises:
            TypeError: one of them is no such field
        """
        self._view = FleetView(RoutingConfig(**settings))  # type: ignore[arg-type]
        self._known: dict[str, RunningReplica] = {}
        self._silent = Silent(self._show)
        self._late = Late()
        self._stats: dict[str, tuple[Mapping[str, Any], RoutingStats]] = {}
        self._request_of: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        self._sent: WeakKeyDictionary[asyncio.Future[Any], Sent] = WeakKeyDictionary()
        self._told: tuple[str, int] = "", 0

    # --- what Ray tells -------------------------------------------------------------------------

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the state of all replicas, which Ray broadcasts with every change."""
        self._known = {replica.replica_id.unique_id: replica for replica in replicas}
        self._stats = {id_: self._read(id_, replica) for id_, replica in self._known.items()}
        self._silent.keep(self._known)
        self._late.hear({id_: stats.late_s for id_, (_, stats) in self._stats.items()})
        self._show()
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Drop a replica at once; the next broadcast may be seconds away."""
        super().on_replica_actor_died(replica_id)
        gone = replica_id.unique_id
        # A new one, since callers on other loops may be reading this.
        self._known = {id_: replica for id_, replica in self._known.items() if id_ != gone}
        self._silent.keep(self._known)
        self._view.gone(gone)
        if self._all_silent():
            self._show()

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Note for whoever waits for the answer who owes it; see serve_app.routing.recipient."""
        super().on_send_request(replica_id)
        replica = self._known.get(replica_id.unique_id)
        if replica is not None:
            ask = partial(self._ask, replica)
            # The caller may live on another loop than this router.
            tell = asyncio.get_running_loop().call_soon_threadsafe
            is_silent = partial(tell, self._fell_silent, replica)
            note(Recipient(replica_id.unique_id, ask, is_silent, self._everybody))

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: Any,  # noqa: ANN401 - its class is private
    ) -> None:
        """Take in that a request was accepted, and let go of its pictures.

        Ray keeps each request for as long as an older one waits for a place.
        """
        super().on_request_routed(pending_request, replica_id, result)
        pending_request.args, pending_request.kwargs = [], {}
        id_, queue_len = self._told
        sent = self._sent.pop(pending_request.future, None)
        if sent is not None and id_ == replica_id.unique_id:
            self._view.accepted(id_, queue_len, sent)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Take in a queue's length; Ray says next whether that request was accepted."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._told = replica_id.unique_id, num_ongoing_requests

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Take in that a request has ended, or was not accepted."""
        self._view.completed(internal_request_id, replica_id.unique_id)

    # --- what Ray asks --------------------------------------------------------------------------

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the ranking for a request, whole at once: there is nothing better to wait for."""
        task = asyncio.current_task()
        if pending_request is None or task is None:  # Ray 2.60 always has both
            return [candidate_replicas]
        # If all are full Ray tries again after a pause; without this it would try without one.
        pending_request.routing_context.should_backoff = True
        self._request_of[task] = pending_request
        if self._late.forget_old():
            self._show()
        ranked = self._view.rank(pending_request.metadata.multiplexed_model_id, self._queue_len)
        known = self._known
        return [[known[id_] for id_ in rank] for rank in ranked] or [candidate_replicas]

    def _fell_silent(self, replica: RunningReplica) -> None:
        """Send nothing more to a replica until it has given a sign of life."""
        id_ = replica.replica_id.unique_id
        if id_ in self._known:
            self.on_replica_actor_unavailable(replica.replica_id)  # Ray asks before it sends
            self._silent.add(id_, partial(self._ask, replica))
            self._show()

    async def _ask(self, replica: RunningReplica) -> None:
        """Ask a replica for a sign of life.

        Raises:
            StalledError: it says itself that its engine hangs, and there are others that get on
        """
        late_s = self._late.late_s(replica.replica_id.unique_id)
        if late_s >= _STALLED_S and self._in_time():
            raise StalledError
        await replica.get_queue_len(deadline_s=_PROBE_S)

    def _everybody(self) -> dict[str, Ask]:
        """Return what asks each replica whether it is there, late or not."""
        known = self._known.items()
        return {id_: partial(one.get_queue_len, deadline_s=_PROBE_S) for id_, one in known}

    def _show(self) -> None:
        """Show the view the replicas that get on; all that are not silent if none does.

        Where all are silent none is: a view that is shown nobody forgets who holds what, and the
        first that answered would get all their requests.
        """
        if self._all_silent():
            self._silent.keep(())
        shown = self._in_time() or [id_ for id_ in self._known if id_ not in self._silent]
        self._view.update([self._state(id_, self._known[id_]) for id_ in shown])

    def _in_time(self) -> list[str]:
        """Return the replicas that answer and whose engines get on."""
        known = [id_ for id_ in self._known if id_ not in self._silent]
        return [id_ for id_ in known if not self._late.late_s(id_)]

    def _all_silent(self) -> bool:
        return all(id_ in self._silent for id_ in self._known)

    def _queue_len(self, id_: str) -> int | None:
        queue_len: int | None = self.replica_queue_len_cache.get(self._known[id_].replica_id)
        return queue_len

    # --- private names of Ray -------------------------------------------------------------------

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: object = None
    ) -> None:
        """Give a replica to the request that the current task has chosen it for."""
        task = asyncio.current_task()
        request = None if task is None else self._request_of.pop(task, None)
        if request is None or request.future.done():
            return
        # Noted before it is sent: the next decision, which may be due before this one is accepted,
        # must know of it. Ray reports its end in any case, even if it is not accepted.
        replica_id = replica.replica_id.unique_id
        metadata = request.metadata
        self._sent[request.future] = self._view.sent(
            metadata.multiplexed_model_id, replica_id, metadata.internal_request_id
        )
        self._record_queue_wait_time(request)
        request.future.set_result(replica)

    def _add_pending_request_to_indices(self, pending_request: PendingRequest) -> None:
        """Take in that a request waits for a place, at first or again; keep no index."""
        note(None)

    def _remove_pending_request_from_indices(self, pending_request: PendingRequest) -> None:
        """Take in that a request was cancelled before it was sent."""
        future = pending_request.future
        if future.done() and not future.cancelled():
            id_ = future.result().replica_id.unique_id
            self._view.completed(pending_request.metadata.internal_request_id, id_)

    # --- Ray's values as ours -------------------------------------------------------------------

    def _read(self, id_: str, replica: RunningReplica) -> tuple[Mapping[str, Any], RoutingStats]:
        """Return what a replica says of itself, as it came and as read; most have not changed."""
        wire = replica.routing_stats or {}
        known = self._stats.get(id_)
        if known is not None and known[0] == wire:
            return known
        return wire, RoutingStats.from_wire(wire)

    def _state(self, id_: str, replica: RunningReplica) -> ReplicaState:
        return ReplicaState(
            id=id_,
            models=frozenset(replica.multiplexed_model_ids),
            stats=self._stats[id_][1],
            max_ongoing=replica.max_ongoing_requests,
        )
