"""What one replica pins, and the loads that this takes; knows nothing of Ray.

A pinned model that cannot be loaded is tried again for as long as it is pinned, later and later.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from serve_app.errors import ServeAppError
from serve_app.fleet.pins import PinTable
from serve_app.fleet.plan import Orders
from serve_app.types import Copies

logger = logging.getLogger(__name__)

CONCURRENT_LOADS = 2
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
ERROR_KEPT_S = 60.0
"""So long a model that failed here is put elsewhere if there is an elsewhere."""


@dataclass(frozen=True, slots=True)
class _Failed:
    message: str
    until_s: float


class Holder:
    """Keeps the pinned models of one replica in memory."""

    def __init__(
        self,
        replica_id: str,
        *,
        apply: Callable[[frozenset[str]], None],
        load: Callable[[str], Awaitable[None]],
        load_spare: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Pin nothing yet.

        Args:
            replica_id: the replica's own id in orders
            apply: is told the pinned models whenever they change
            load: makes a model resident; raises ServeAppError when it cannot
            load_spare: the same at the price of nothing that is asked for
            clock: seconds of the wall clock
            sleep: waits for some seconds
        """
        self.table = PinTable()
        self.configured: dict[str, Copies] = {}
        self.pinned: frozenset[str] = frozenset()
        self._replica_id = replica_id
        self._apply, self._load, self._load_spare = apply, load, load_spare
        self._clock, self._sleep = clock, sleep
        self._assigned: frozenset[str] = frozenset()
        self._second: frozenset[str] = frozenset()
        self._failed: dict[str, _Failed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._spares: frozenset[str] = frozenset()  # still to be loaded
        self._spare: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(CONCURRENT_LOADS)

    @property
    def second_copies(self) -> frozenset[str]:
        """Those of `pinned` that are more copies than are wanted."""
        return self._second & self.pinned

    @property
    def errors(self) -> dict[str, str]:
        """Why models that were pinned here lately could not be loaded, by key."""
        now = self._clock()
        self._failed = {
            key: failed
            for key, failed in self._failed.items()
            if key in self.pinned or failed.until_s > now
        }
        return {key: failed.message for key, failed in self._failed.items()}

    def configure(self, configured: Mapping[str, Copies], share: Iterable[str]) -> None:
        """Take what `user_config` wants, and of that what falls to this replica.

        A pin that changes in `user_config` while the replica runs is a write like any other: the
        last one holds.
        """
        now = self._clock()
        old, self.configured = self.configured, dict(configured)
        changed = {key for key in {*old, *configured} if old.get(key, 0) != configured.get(key, 0)}
        for key in changed:
            if key in self.table:
                self.table.write(key, configured.get(key, 0), now, self._replica_id)
        gone = {key for key in changed if key not in configured}
        self._assigned = (self._assigned - gone) | (changed & set(share))
        self._settle()

    def take(self, orders: Orders) -> None:
        """Follow `orders`, unless they were given without knowing of a later pin."""
        now = self._clock()
        stale = not PinTable(orders.pins).covers(self.table.pins, now, self.configured)
        self.table.merge(orders.pins)
        self.table.forget(now, self.configured)
        if not stale:
            self._assigned = orders.pinned.get(self._replica_id, frozenset())
            self._second = orders.second.get(self._replica_id, frozenset())
            self._spares = orders.spare.get(self._replica_id, frozenset())
            if self._spares and (self._spare is None or self._spare.done()):
                self._spare = asyncio.create_task(self._load_spares())
        self._settle()

    async def tried(self) -> None:
        """Return once each pinned model is in memory, or its first load here has failed."""
        for event in list(self._tried.values()):
            await event.wait()

    async def aclose(self) -> None:
        """Stop trying."""
        tasks = [*self._tasks.values(), *([self._spare] if self._spare else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _settle(self) -> None:
        """Bring pins and loads in line with what is wanted."""
        wanted = self.table.wanted(self.configured)
        # What is in neither may be in the user_config of replicas that took another one already.
        self._assigned = frozenset(k for k in self._assigned if k in wanted or k not in self.table)
        everywhere = {key for key, copies in wanted.items() if copies is None}
        pinned, old = self._assigned | everywhere, self.pinned
        if pinned == old:
            return
        self.pinned = pinned
        self._apply(pinned)
        for key in old - pinned:
            self._tasks.pop(key).cancel()
            self._tried.pop(key).set()
        order = list(wanted)
        for key in sorted(pinned - old, key=lambda k: (order.index(k) if k in wanted else -1, k)):
            self._tried[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._keep_loading(key, self._tried[key]))

    async def _keep_loading(self, key: str, tried: asyncio.Event) -> None:
        """Load `key`; when that fails try again, each time after twice as long."""
        retry_s = FIRST_RETRY_S
        while not await self._loaded(key):
            tried.set()
            await self._sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
        tried.set()

    async def _load_spares(self) -> None:
        """Load what the last orders name, each once; one that cannot be loaded is no loss."""
        while self._spares:
            key = min(self._spares)
            self._spares -= {key}
            try:
                await self._load_spare(key)
            except ServeAppError as error:
                logger.info("no second copy of %s here: %s", key, error.detail)
            except Exception:  # a defect: it must not end the others
                logger.exception("loading a second copy of %s failed unexpectedly", key)

    async def _loaded(self, key: str) -> bool:
        try:
            async with self._turns:
                await self._load(key)
        except ServeAppError as error:
            message = f"{error.code}: {error.detail}"
        except Exception as error:  # a defect: it must not end the pin
            logger.exception("loading the pinned model %s failed unexpectedly", key)
            message = f"{type(error).__name__}: {error}"
        else:
            self._failed.pop(key, None)
            return True
        logger.warning("the pinned model %s was not loaded: %s", key, message)
        self._failed[key] = _Failed(message, self._clock() + ERROR_KEPT_S)
        return False
