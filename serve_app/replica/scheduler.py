"""Which pictures go next, as one batch: fair between models, in time, pure and synchronous.

Start-time fair queueing over models, in engine seconds: each model that waits has a start tag,
the lowest goes next, and its tag then grows by the seconds that its batch takes. The tag of the
batch that began last is the virtual time, at which a model starts that did not wait: so a model
of few requests goes before one with a long queue, and a slow one gets fewer turns.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_DEBTS = 256
"""Models without anything queued whose use of the engine is still remembered."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One picture's place in a queue.

    flow: its model; the engine is shared fairly between flows
    lane: what pictures of one batch have in common: their shape
    deadline: when it must be answered, in seconds of the clock that `take` is told
    max_batch: the most pictures that should go together
    expected_s: seconds that a batch of so many pictures of this lane will take
    """

    work: T
    flow: Hashable
    lane: Hashable
    deadline: float
    max_batch: int
    expected_s: Callable[[int], float]
    order: int = 0
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Turn(Generic[T]):
    """A batch: tickets of one flow and lane, in order of arrival; ended by `done`.

    finish: the flow's tag after it; charged_s: seconds that it was expected to take
    """

    tickets: list[Ticket[T]]
    flow: Hashable
    finish: float
    charged_s: float


@dataclass(slots=True, eq=False)
class _Flow(Generic[T]):
    """The queue of one model: lanes in the order of their oldest tickets.

    place: the number of its valid entry in the order of flows; earlier ones are out of date
    """

    start: float
    place: int = 0
    lanes: dict[Hashable, deque[Ticket[T]]] = field(default_factory=dict)
    oldest: list[tuple[int, Hashable]] = field(default_factory=list)


class FairScheduler(Generic[T]):
    """The queues of all models that wait; not safe for threads, and without a clock."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._flows: dict[Hashable, _Flow[T]] = {}
        self._order: list[tuple[float, int, Hashable]] = []
        self._debts: dict[Hashable, float] = {}
        self._virtual = 0.0
        self._waiting = 0
        self._running = 0

    def __len__(self) -> int:
        """How many tickets wait."""
        return self._waiting

    @property
    def remembered(self) -> int:
        """How many flows there is any state of."""
        return len(self._flows.keys() | self._debts.keys())

    def add(self, ticket: Ticket[T]) -> None:
        """Queue a ticket."""
        flow = self._flows.get(ticket.flow)
        if flow is None:
            start = max(self._virtual, self._debts.pop(ticket.flow, 0.0))
            flow = self._flows[ticket.flow] = _Flow(start)
            self._enqueue(ticket.flow, flow)
        ticket.order = next(self._numbers)
        lane = flow.lanes.get(ticket.lane)
        if lane is None:
            lane = flow.lanes[ticket.lane] = deque()
            heapq.heappush(flow.oldest, (ticket.order, ticket.lane))
        lane.append(ticket)
        self._waiting += 1

    def cancel(self, ticket: Ticket[T]) -> None:
        """Drop a ticket that waits; it costs its model nothing."""
        ticket.cancelled = True
        self._waiting -= 1

    def take(self, now: float) -> tuple[Turn[T] | None, list[Ticket[T]]]:
        """Return the next batch, if any, and the tickets met that cannot be answered in time."""
        expired: list[Ticket[T]] = []
        while self._order:
            _, place, key = heapq.heappop(self._order)
            flow = self._flows.get(key)
            if flow is None or flow.place != place:
                continue
            tickets = self._form(flow, now, expired)
            turn = self._begin(key, flow, tickets) if tickets else None
            if flow.lanes:
                self._enqueue(key, flow)
            else:
                del self._flows[key]
                self._remember(key, flow.start)
            if turn is not None:
                return turn, expired
        return None, expired

    def done(self, turn: Turn[T], seconds: float) -> None:
        """End a turn, and charge what it really took."""
        self._running -= 1
        error = seconds - turn.charged_s
        flow = self._flows.get(turn.flow)
        if flow is not None:
            flow.start += error
            self._enqueue(turn.flow, flow)
        else:
            self._remember(turn.flow, self._debts.pop(turn.flow, turn.finish) + error)
        if not self._running and not self._flows:
            self._debts.clear()  # nobody has to wait for what they used

    def of(self, flow: Hashable) -> list[Ticket[T]]:
        """Return the tickets of one model that wait, lane by lane."""
        found = self._flows.get(flow)
        lanes = found.lanes.values() if found is not None else ()
        return [ticket for lane in lanes for ticket in lane if not ticket.cancelled]

    def drain(self) -> list[Ticket[T]]:
        """Empty all queues and return what waited."""
        lanes = (lane for flow in self._flows.values() for lane in flow.lanes.values())
        waiting = [ticket for lane in lanes for ticket in lane if not ticket.cancelled]
        self._flows.clear()
        self._order.clear()
        self._waiting = 0
        return waiting

    def _form(self, flow: _Flow[T], now: float, expired: list[Ticket[T]]) -> list[Ticket[T]]:
        """Take a batch off the lane of the flow's oldest ticket."""
        while flow.oldest:
            order, key = heapq.heappop(flow.oldest)
            lane = flow.lanes[key]
            self._trim(lane, now, expired)
            # Without those that left, another lane's first may be the oldest.
            batch = self._fill(lane, now, expired) if lane and lane[0].order == order else []
            if lane:
                heapq.heappush(flow.oldest, (lane[0].order, key))
            else:
                del flow.lanes[key]
            if batch:
                return batch
        return []

    def _trim(self, lane: deque[Ticket[T]], now: float, expired: list[Ticket[T]]) -> None:
        """Take off a lane's head what was cancelled, and what cannot be answered in time."""
        while lane:
            ticket = lane[0]
            if not ticket.cancelled:
                if now + ticket.expected_s(1) <= ticket.deadline:
                    return
                expired.append(ticket)
                self._waiting -= 1
            lane.popleft()

    def _fill(
        self, lane: deque[Ticket[T]], now: float, expired: list[Ticket[T]]
    ) -> list[Ticket[T]]:
        """Take tickets as long as none of them is late for the others' sake."""
        batch: list[Ticket[T]] = []
        earliest = float("inf")
        while lane and len(batch) < lane[0].max_batch:
            earliest = min(earliest, lane[0].deadline)
            if batch and now + lane[0].expected_s(len(batch) + 1) > earliest:
                break
            batch.append(lane.popleft())
            self._waiting -= 1
            self._trim(lane, now, expired)
        return batch

    def _begin(self, key: Hashable, flow: _Flow[T], tickets: list[Ticket[T]]) -> Turn[T]:
        charged_s = tickets[0].expected_s(len(tickets))
        self._virtual = max(self._virtual, flow.start)
        flow.start += charged_s
        self._running += 1
        return Turn(tickets, key, flow.start, charged_s)

    def _enqueue(self, key: Hashable, flow: _Flow[T]) -> None:
        """Put a flow in its place by its tag; its earlier place is void."""
        flow.place = next(self._numbers)
        heapq.heappush(self._order, (flow.start, flow.place, key))
        if len(self._order) > 2 * len(self._flows) + MAX_DEBTS:
            self._order = [(f.start, f.place, key) for key, f in self._flows.items()]
            heapq.heapify(self._order)

    def _remember(self, key: Hashable, tag: float) -> None:
        """Keep what a flow without tickets has used beyond its share, the largest debts only."""
        if tag <= self._virtual:
            return
        self._debts[key] = tag
        if len(self._debts) > MAX_DEBTS:
            owed = ((k, t) for k, t in self._debts.items() if t > self._virtual)
            self._debts = dict(_largest(owed, MAX_DEBTS // 2))


def _largest(debts: Iterable[tuple[Hashable, float]], count: int) -> list[tuple[Hashable, float]]:
    return heapq.nlargest(count, debts, key=lambda debt: debt[1])
