"""Serve's part of routing, the same for every router: `RequestRouter` of 2.60 in virtual time.

Queue lengths are what the router itself sent, corrected by each replica's answer when it accepts
or rejects a request; candidates that are full or unknown are asked. At most so many requests are
being routed at once, and who finds nobody tries again after a while, longer each time.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter_ns

from benchmarks.routing.events import Timeline
from benchmarks.routing.replica import Job, Replica
from benchmarks.routing.routers import Pending, Router
from benchmarks.routing.workload import Request
from serve_app.routing.fleet_view import Sent

HOP_S = 0.0005
"""From a router to a replica, or back."""
FIRST_BACKOFF_S = 0.025
LONGEST_BACKOFF_S = 0.5
STALE_S = 10.0
"""Queue lengths that are older count as unknown."""
MOST_ROUTING_TASKS = 50


class Ingress:
    """One ingress replica with its router."""

    def __init__(
        self,
        router: Router,
        replicas: Mapping[str, Replica],
        timeline: Timeline,
        finished: Callable[[Job], None],
        *,
        by_model: bool,
        by_grpc: bool,
    ) -> None:
        """Begin with what the first probes say: nobody has anything to do.

        Args:
            router: ranks replicas
            replicas: by id
            timeline: of the simulation
            finished: is told of every answer
            by_model: whether a replica that was found goes to the oldest request for the model, as
                Ray's FIFOMixin has it, rather than to the one that it was found for
            by_grpc: whether the queue length at which a request was accepted is learnt with its
                answer, as with RAY_SERVE_USE_GRPC_BY_DEFAULT, rather than at once
        """
        self.router = router
        self.decision_ns: list[int] = []
        self._replicas = replicas
        self._timeline = timeline
        self._finished = finished
        self._by_model = by_model
        self._by_grpc = by_grpc
        self._queue_lens: dict[str, tuple[int, float]] = dict.fromkeys(replicas, (0, 0.0))
        self._to_route: deque[Pending] = deque()
        self._waiting: defaultdict[str, deque[Pending]] = defaultdict(deque)
        self._tasks = 0
        self._most_tasks = min(MOST_ROUTING_TASKS, 2 * len(replicas))

    def arrive(self, request: Request) -> None:
        """Take a request in."""
        self._enqueue(Pending(request))

    def queue_len(self, replica_id: str) -> int | None:
        """Return how many requests a replica has, as far as this router knows."""
        length, at = self._queue_lens[replica_id]
        return None if self._timeline.now - at > STALE_S else length

    # --- routing tasks --------------------------------------------------------------------------

    def _enqueue(self, pending: Pending, *, first: bool = False) -> None:
        queues = [self._to_route]
        if self._by_model:
            queues.append(self._waiting[pending.request.model.id])
        for queue in queues:
            if first:
                queue.appendleft(pending)
            else:
                queue.append(pending)
        self._start_tasks()

    def _start_tasks(self) -> None:
        while self._tasks < self._most_tasks and self._to_route:
            pending = self._to_route.popleft()
            if not pending.done:
                self._tasks += 1
                pending.routing = True
                self._timeline.after(0.0, partial(self._attempt, pending, 0))

    def _attempt(self, pending: Pending, attempt: int) -> None:
        if pending.done:
            return
        before = perf_counter_ns()
        ranks = self.router.rank(pending, self.queue_len)
        self.decision_ns.append(perf_counter_ns() - before)
        self._try(pending, attempt, ranks, 0)

    def _try(self, pending: Pending, attempt: int, ranks: list[list[str]], first: int) -> None:
        """Send to the best replica of the first rank that has one with room."""
        for place in range(first, len(ranks)):
            chosen, unsure = self._shortest(ranks[place])
            if chosen is None and unsure:
                go_on = partial(self._probed, pending, attempt, ranks, place, unsure)
                self._timeline.after(2 * HOP_S, go_on)
                return
            if unsure:
                self._timeline.after(2 * HOP_S, partial(self._probe, unsure))
            if chosen is not None and self._fulfil(pending, chosen):
                return
        # The first retry follows at once.
        delay_s = 0.0 if attempt == 0 else FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 10)
        self._timeline.after(
            min(delay_s, LONGEST_BACKOFF_S), lambda: self._attempt(pending, attempt + 1)
        )

    def _probed(
        self,
        pending: Pending,
        attempt: int,
        ranks: list[list[str]],
        place: int,
        asked: list[str],
    ) -> None:
        if pending.done:
            return
        self._probe(asked)
        lengths = {id_: self._queue_lens[id_][0] for id_ in asked}
        chosen = min(asked, key=lambda id_: lengths[id_])
        has_room = lengths[chosen] < self._replicas[chosen].config.max_ongoing
        if not (has_room and self._fulfil(pending, chosen)):
            self._try(pending, attempt, ranks, place + 1)

    def _probe(self, asked: list[str]) -> None:
        for id_ in asked:
            self._queue_lens[id_] = (self._replicas[id_].ongoing, self._timeline.now)

    def _shortest(self, rank: list[str]) -> tuple[str | None, list[str]]:
        """Return the replica with the shortest known queue, and those to be asked."""
        chosen, shortest, unsure = None, 0, []
        for id_ in rank:
            length = self.queue_len(id_)
            if length is None or length >= self._replicas[id_].config.max_ongoing:
                unsure.append(id_)
            elif chosen is None or length < shortest:
                chosen, shortest = id_, length
        return chosen, unsure

    def _fulfil(self, pending: Pending, replica_id: str) -> bool:
        """Send a request to the replica; return whether it was this one."""
        taken = self._oldest(pending.request.model.id) if self._by_model else pending
        taken.done = True
        if taken.routing:
            taken.routing = False
            self._tasks -= 1
        self._send(taken, replica_id)
        if taken is pending or self._to_route:
            self._start_tasks()
        return taken is pending

    def _oldest(self, model: str) -> Pending:
        waiting = self._waiting[model]
        while waiting[0].done:
            waiting.popleft()
        taken = waiting.popleft()
        if not waiting:
            del self._waiting[model]
        return taken

    # --- what goes to and fro ------------------------------------------------------------------

    def _send(self, pending: Pending, replica_id: str) -> None:
        request = pending.request
        self._change(replica_id, 1)
        sent = self.router.sent(request.model.id, replica_id, str(request.number))
        replica = self._replicas[replica_id]

        length = 0

        def answered(job: Job) -> None:
            if self._by_grpc:
                tell(accepted=True)
            self._timeline.after(HOP_S, lambda: self._answered(job, replica_id))

        def receive() -> None:
            nonlocal length
            accepted = replica.receive(Job(request, answered))
            length = replica.ongoing
            if not (accepted and self._by_grpc):
                tell(accepted=accepted)

        def tell(*, accepted: bool) -> None:
            told = partial(self._told, pending, replica_id, length, sent, accepted=accepted)
            self._timeline.after(HOP_S, told)

        self._timeline.after(HOP_S, receive)

    def _told(
        self, pending: Pending, replica_id: str, length: int, sent: Sent | None, *, accepted: bool
    ) -> None:
        self._queue_lens[replica_id] = (length, self._timeline.now)
        if accepted and sent is not None:
            self.router.accepted(replica_id, length, sent)
        if not accepted:
            self.router.completed(str(pending.request.number))
            self._enqueue(replace(pending, done=False), first=True)

    def _answered(self, job: Job, replica_id: str) -> None:
        self._change(replica_id, -1)
        self.router.completed(str(job.request.number))
        self._finished(job)

    def _change(self, replica_id: str, by: int) -> None:
        known = self.queue_len(replica_id)
        if known is None and by < 0:
            return
        self._queue_lens[replica_id] = (max(0, (known or 0) + by), self._timeline.now)
