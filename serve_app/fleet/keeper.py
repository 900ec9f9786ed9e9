"""Holds the fleet to what is wanted; one in each ingress replica, and none of them leads.

It asks the replicas what they hold and know, plans, and tells them only where that differs. Orders
follow from reports alone, so several keepers give the same, and giving them twice changes nothing.
When second copies are made is each keeper's own clock's; so what one has made, others keep.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.errors import Failure, OverloadedError, ServeAppError, from_failure
from serve_app.fleet.pins import PinTable
from serve_app.fleet.plan import (
    Orders,
    Placing,
    Seconds,
    best_places,
    configured_in,
    plan,
    second_copies,
    spares,
)
from serve_app.fleet.shrink import replicas_needed_by
from serve_app.types import Copies, ModelKey, ReplicaReport

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
IDLE_PERIOD_S = 10.0
"""While nothing is pinned by number: only to learn of pins that others were told of."""
GRACE_S = 3.0
"""A replica that does not answer is planned with for so long: one that takes a new `user_config`
is back by then, and its models need not move."""
_SPARE_UNTIL = 3
"""After so many times `spare_copies_after_s` no replica has gone, so none will."""
_ONLY_HERE = frozenset({"overloaded", "model_exceeds_budget", "device_failed", "replica_failing"})
"""Failures that another replica need not share."""


class Fleet(Protocol):
    """The replicas; every method raises a ServeAppError when they cannot be reached."""

    async def replicas(self) -> list[ReplicaReport]:
        """Return the state of every replica, sorted by id; none when there are none."""

    async def load(self, key: ModelKey, timeout_s: float) -> str:
        """Make a model resident where the router says; return that replica's id."""

    async def load_on(
        self, key: ModelKey, replica_ids: Collection[str], timeout_s: float
    ) -> Mapping[str, Failure | None]:
        """Make a model resident on these replicas; return what came of it, by id."""

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Release a model that is not pinned everywhere; return how many replicas held it."""

    async def order(self, orders: Orders) -> None:
        """Tell every replica what it is to hold."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a model is resident now. `shortfall` says why on fewer replicas than `wanted`."""

    wanted: Copies
    replicas: tuple[str, ...]
    shortfall: str | None = None


class FleetKeeper:
    """Loads and pins models on a wanted number of replicas and restores that number."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        needed: Callable[[Sequence[ReplicaReport]], int] = replicas_needed_by,
        author: str | None = None,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know of no pin yet.

        Args:
            fleet: the replicas
            needed: how many of these replicas would do; when that is fewer than there are for as
                long as `user_config` says, pinned and hot models get a second copy for a while,
                since Ray chooses which replica goes
            author: tells this keeper's writes from others'
            wall_clock: seconds, compared with other machines'
            clock: seconds, for durations
        """
        self._fleet = fleet
        self._needed = needed
        self._author = author or uuid.uuid4().hex
        self._wall_clock, self._clock = wall_clock, clock
        self._table = PinTable()
        self._seen: dict[str, tuple[float, ReplicaReport]] = {}
        self._fewer_since: tuple[float, int] | None = None
        self._spares_told = False
        self._changed = asyncio.Event()
        self._failing = False

    async def run(self) -> None:
        """Keep at it until cancelled; what goes wrong is logged and tried again."""
        while True:
            self._changed.clear()
            period_s = PERIOD_S
            try:
                if not await self.reconcile():
                    period_s = IDLE_PERIOD_S
                self._failing = False
            except ServeAppError as error:
                self._tell_once(error.detail)
            except Exception:
                logger.exception("keeping the pins failed unexpectedly")
            try:
                await asyncio.wait_for(self._changed.wait(), period_s)
            except TimeoutError:
                continue

    async def reconcile(self) -> bool:
        """Bring the replicas in line with what is wanted; return whether any is pinned by number.

        Raises:
            ServeAppError: the replicas did not answer in time
        """
        return await self._carry_out(await self._fleet.replicas())

    @property
    def replica_count(self) -> int:
        """How many replicas there were when it last looked."""
        return len(self._seen)

    def wanted(self, reports: Sequence[ReplicaReport]) -> dict[str, Copies]:
        """Return the wanted copies of each pinned model, by key, the longest pinned first."""
        configured = configured_in(reports)
        for report in reports:
            self._table.merge(report.pins)
        if reports:  # else what is configured is not known
            self._table.forget(self._wall_clock(), configured)
        return self._table.wanted(configured)

    async def load(self, key: ModelKey, copies: Copies, timeout_s: float) -> Placed:
        """Make `key` resident on `copies` replicas, first where it is already.

        Raises:
            ServeAppError: no replica could load it, and why
        """
        if copies == 1:
            return Placed(1, (await self._fleet.load(key, timeout_s),))
        return await self._load_on_best(key, copies, timeout_s)

    async def pin(self, key: ModelKey, copies: Copies, timeout_s: float) -> Placed:
        """Load `key` on `copies` replicas, and keep so many from now on.

        Raises:
            ServeAppError: no replica could load it, and why; then it is not pinned
        """
        placed = await self._load_on_best(key, copies, timeout_s)
        self._write(key, copies)
        try:
            await self.reconcile()
        except ServeAppError as error:  # it is pinned all the same: the loop tries again
            self._tell_once(error.detail)
        return placed

    async def unpin(self, key: ModelKey) -> Copies:
        """Let `key` be evicted again everywhere; return how many copies were wanted."""
        reports = await self._fleet.replicas()
        copies = self.wanted(reports).get(str(key), 0)
        if copies != 0 or not reports:  # then nobody could say what is configured
            self._write(key, 0)
            await self._carry_out(reports)
        return copies

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Unpin `key` and release it everywhere; return how many replicas held it."""
        await self.unpin(key)
        return await self._fleet.unload(key, timeout_s)

    async def _load_on_best(self, key: ModelKey, copies: Copies, timeout_s: float) -> Placed:
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        reports = await self._fleet.replicas()
        if not reports:  # scaled to zero: a request wakes one
            await self._fleet.load(key, timeout_s)
            reports = await self._fleet.replicas()
        self.wanted(reports)  # what is written next must be later than all that is known
        goal = len(reports) if copies is None else min(copies, len(reports))
        untried = best_places(reports, str(key))
        loaded: list[str] = []
        failure: Failure | None = None
        while untried and len(loaded) < goal and (failure is None or failure.code in _ONLY_HERE):
            count = goal - len(loaded)
            chosen, untried = untried[:count], untried[count:]
            answers = await self._fleet.load_on(key, chosen, max(0.0, deadline - now()))
            loaded += [name for name, answer in answers.items() if answer is None]
            failure = next((answer for answer in answers.values() if answer), failure)
        if not loaded:
            raise _error(failure)
        if len(loaded) >= (copies or goal):
            return Placed(copies, tuple(sorted(loaded)))
        there_are = "is 1 replica" if len(reports) == 1 else f"are {len(reports)} replicas"
        shortfall = failure.detail if failure else f"there {there_are} now"
        return Placed(copies, tuple(sorted(loaded)), shortfall)

    async def _carry_out(self, reports: Sequence[ReplicaReport]) -> bool:
        reports = self._with_missing(reports)
        wanted = self.wanted(reports)
        if reports:  # else all are gone, or take a new configuration: there is nobody to tell
            await self._tell_what_differs(reports, wanted)
        return any(copies is not None for copies in wanted.values())

    async def _tell_what_differs(
        self, reports: Sequence[ReplicaReport], wanted: Mapping[str, Copies]
    ) -> None:
        seconds = self._seconds(reports)
        planned = plan(reports, wanted, seconds)
        second = second_copies(reports, planned, wanted)
        spare = spares(reports, planned) if seconds is Seconds.MAKE else {}
        # Once more when spares end, so that replicas stop loading those that are not there yet.
        if spare or self._spares_told or self._differs(reports, planned, second, wanted):
            await self._fleet.order(Orders(self._table.pins, planned, second, spare))
            self._spares_told = bool(spare)

    def _differs(
        self,
        reports: Sequence[ReplicaReport],
        planned: Placing,
        second: Placing,
        wanted: Mapping[str, Copies],
    ) -> bool:
        """Tell whether a replica has to hear of anything."""
        # What is wanted on every replica each pins by itself, once it knows the table.
        everywhere = {key for key, copies in wanted.items() if copies is None}
        now, configured, pins = self._wall_clock(), configured_in(reports), self._table.pins
        return any(
            not PinTable(report.pins).covers(pins, now, configured)
            or set(report.pinned) - everywhere != planned[report.replica_id] - everywhere
            or set(report.second_copies) != second[report.replica_id]
            for report in reports
        )

    def _with_missing(self, reports: Sequence[ReplicaReport]) -> list[ReplicaReport]:
        """Return `reports` with those of replicas that answered a moment ago."""
        now = self._clock()
        self._seen |= {report.replica_id: (now, report) for report in reports}
        self._seen = {name: old for name, old in self._seen.items() if now - old[0] <= GRACE_S}
        if not reports:
            return []
        return [self._seen[name][1] for name in sorted(self._seen)]

    def _seconds(self, reports: Sequence[ReplicaReport]) -> Seconds:
        """Return what is to become of second copies."""
        waits_s = [one.spare_copies_after_s for one in reports]
        wait_s = min((wait_s for wait_s in waits_s if wait_s is not None), default=None)
        count = len(reports)
        if wait_s is None or count < 2 or self._needed(reports) >= count:
            self._fewer_since = None
            return Seconds.NONE
        if self._fewer_since is None or self._fewer_since[1] != count:
            self._fewer_since = self._clock(), count
        # Where the number stays, by `min_replicas` say, copies for ever would be made for nothing.
        until_s = _SPARE_UNTIL * wait_s + 2 * IDLE_PERIOD_S
        is_time = wait_s <= self._clock() - self._fewer_since[0] < until_s
        return Seconds.MAKE if is_time else Seconds.KEEP

    def _write(self, key: ModelKey, copies: Copies) -> None:
        self._table.write(str(key), copies, self._wall_clock(), self._author)
        self._changed.set()

    def _tell_once(self, detail: str) -> None:
        if not self._failing:
            logger.warning("pins cannot be kept just now: %s", detail)
        self._failing = True


def _error(failure: Failure | None) -> ServeAppError:
    if failure is not None:
        return from_failure(failure)
    return OverloadedError("the replicas that were to load it are gone: try again")
