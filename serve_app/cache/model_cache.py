"""The cache of loaded models: leases on demand, under a budget in bytes.

Every decision is a synchronous step on `CacheState` that returns what to close; loading and closing
run outside, each as a task of the cache's own, so that a request that is cancelled takes nobody
else's load with it.

A load that nobody waits for any more is dropped while it waits for its turn or for room; one that
is preparing ends that first (the file stays prepared), and one that is opening becomes resident.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic

from serve_app.cache.admission import CacheLimits
from serve_app.cache.entry import Entry, Phase
from serve_app.cache.lease import Lease
from serve_app.cache.loader import M, ModelLoader, P
from serve_app.cache.observer import CacheObserver, NullObserver, Outcome
from serve_app.cache.policies import LRU, Policy
from serve_app.cache.quarantine import Quarantine, look_at_nothing, nothing_known
from serve_app.cache.state import CacheState, no_room
from serve_app.errors import (
    DeadlineExceededError,
    InvalidParameterError,
    ModelBrokenError,
    OverloadedError,
    ReplicaFailingError,
    ServeAppError,
)
from serve_app.types import ModelKey, ResidentModel, SetAside

logger = logging.getLogger(__name__)


class ModelCache(Generic[P, M]):
    """Keeps models resident while they are used and as long as the budget allows.

    Belongs to one event loop; it must be running whenever a method is called.
    """

    def __init__(
        self,
        loader: ModelLoader[P, M],
        *,
        limits: CacheLimits,
        policy: Policy | None = None,
        max_concurrent_loads: int = 2,
        max_concurrent_prepares: int = 8,
        patience_s: float = 1.0,
        observer: CacheObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        file_of: Callable[[ModelKey], Hashable] = nothing_known,
        look: Callable[[ModelKey], None] = look_at_nothing,
    ) -> None:
        """Make an empty cache.

        Args:
            loader: brings models into memory and back
            limits: bytes, models and pins; changed by `reconfigure`
            policy: in which order models go; the least recently used first by default
            max_concurrent_loads: loads that open at the same time
            max_concurrent_prepares: loads that fetch and verify at the same time; more, since a
                slow download must not hold back a file that is there
            patience_s: how long a load without room lets later ones pass and models in use be
            observer: is told of requests, loads and evictions
            clock: seconds, for durations and the order of use
            file_of: something that differs when a model's file was replaced; must not block
            look: has that brought up to date for a model set aside; must not block
        """
        if max_concurrent_loads < 1:
            raise ValueError(f"max_concurrent_loads must be 1 or more, not {max_concurrent_loads}")
        if max_concurrent_prepares < 1:
            raise ValueError(
                f"max_concurrent_prepares must be 1 or more, not {max_concurrent_prepares}"
            )
        self._loader = loader
        self._clock = clock
        self._observer = observer or NullObserver()
        self._state: CacheState[M] = CacheState(
            limits,
            policy or LRU(),
            self._observer,
            clock,
            max_concurrent_loads=max_concurrent_loads,
            max_concurrent_prepares=max_concurrent_prepares,
            patience_s=patience_s,
        )
        self._quarantine = Quarantine(clock, file_of=file_of, look=look)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def budget_bytes(self) -> int:
        """Bytes that the models may hold."""
        return self._state.limits.budget_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that are held or reserved, those of models being closed included."""
        return self._state.held.used_bytes

    def keys(self) -> frozenset[ModelKey]:
        """Return the models that are resident or loading."""
        return self._state.keys()

    def snapshot(self) -> tuple[ResidentModel, ...]:
        """Return every model with its own bytes; what models share is in `used_bytes` only."""
        held, now = self._state.held, self._clock()
        return tuple(
            ResidentModel(
                key=str(key),
                state=entry.phase.state,
                bytes=held[key].own_bytes if key in held else 0,
                leases=0 if entry.is_loading else entry.holds,
                pinned=key in self._state.limits.pinned,
                idle_s=0.0 if entry.is_loading or entry.holds else round(now - entry.last_used, 3),
            )
            for key, entry in self._state.entries.items()
        )

    def set_aside(self) -> tuple[SetAside, ...]:
        """Return the models whose requests are refused because their loads kept failing."""
        return self._quarantine.snapshot()

    def __repr__(self) -> str:
        states = [entry.phase.state for entry in self._state.entries.values()]
        evicting = f"{states.count('evicting')} evicting, " if "evicting" in states else ""
        leases = sum(e.holds for e in self._state.entries.values() if not e.is_loading)
        unit, size = ("MiB", 2**20) if self.budget_bytes >= 2**20 else ("B", 1)
        return (
            f"ModelCache({states.count('resident')} resident, {states.count('loading')} loading, "
            f"{evicting}{leases} leases, "
            f"{self.used_bytes / size:.0f}/{self.budget_bytes / size:.0f} {unit})"
        )

    @asynccontextmanager
    async def lease(
        self,
        key: ModelKey,
        *,
        timeout_s: float,
        is_request: bool = True,
        evicts_after_s: float = 0.0,
    ) -> AsyncIterator[Lease[M]]:
        """Hold `key` in memory for the length of the block, loading it first if need be.

        is_request: whether someone asks for it, which the observer is told; else see `load`

        Raises:
            OverloadedError: there was no room or no turn for it in `timeout_s`
            DeadlineExceededError: its load took longer than `timeout_s`; it goes on for others
            ModelExceedsBudgetError: it can never fit
            ServeAppError: whatever its load ended in, or the last one of a model set aside
        """
        asked, deadline = self._clock(), _deadline(timeout_s)
        waited = await self._until_not_leaving(key, deadline, is_request)
        entry = self._hold(key, waited, is_request, evicts_after_s)
        try:
            cold = entry.is_loading
            if cold:
                await self._until_resident(entry, deadline)
            assert entry.model is not None  # noqa: S101 - what RESIDENT means
            load_s = entry.load_s if cold else None
            yield Lease(key, entry.model, cold, load_s, self._clock() - asked)
        finally:
            self._release(entry)

    async def load(
        self,
        key: ModelKey,
        *,
        timeout_s: float,
        at_once: bool = False,
        evicts_after_s: float = 0.0,
    ) -> bool:
        """Make `key` resident and keep no lease; return whether it had to be loaded.

        It is no request: what is loaded ahead of requests says nothing of what is asked for.

        Args:
            key: the model
            timeout_s: how long it may take
            at_once: try it even if it is set aside because its loads failed
            evicts_after_s: evict only models that have been idle for so long, and where these are
                too few raise OverloadedError at once; until somebody asks for `key`
        """
        if at_once:
            self._quarantine.try_now(key)
        async with self.lease(
            key, timeout_s=timeout_s, is_request=False, evicts_after_s=evicts_after_s
        ) as lease:
            return lease.cold

    async def unload(self, key: ModelKey, *, timeout_s: float) -> bool:
        """Close `key` once its leases have ended; return False if it was not there.

        While this waits, `key` takes no new leases: requests for it wait, then load it anew.

        Raises:
            InvalidParameterError: it is pinned
            OverloadedError: it was still in use after `timeout_s`; it stays
        """
        deadline = _deadline(timeout_s)
        self._quarantine.try_now(key)  # somebody sees to it
        entry = self._state.entries.get(key)
        if entry is None:
            return False
        entry.unloads += 1
        try:
            while self._state.entries.get(key) is entry:
                if not await _done(self._send_away(entry), deadline):
                    raise OverloadedError(f"model {key} is still in use: try again later")
        finally:
            entry.unloads -= 1
            self._go_on()  # a model whose unload was given up may stay
        return True

    def reconfigure(self, limits: CacheLimits, policy: Policy | None = None) -> None:
        """Take new limits at once; what they do not allow goes as its leases end.

        Args:
            limits: bytes, models and pins from now on
            policy: in which order models go from now on; None, or one of the class in force,
                changes nothing
        """
        self._state.reconfigure(limits, policy)
        self._go_on()

    async def aclose(self) -> None:
        """Cancel the loads, wait for the leases, close every model and end every task."""
        self._state.ending = True
        for entry in list(self._state.entries.values()):
            if entry.phase is Phase.OPENING:
                assert entry.task is not None  # noqa: S101 - every load has one
                entry.task.cancel()
            elif entry.is_loading:
                self._drop(entry, _ENDING.copy())
            elif entry.phase is Phase.RESIDENT:
                self._state.evict([entry.key], "shutdown")
        self._go_on()
        while pending := {*self._tasks, *(e.gone for e in self._state.entries.values())}:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    # --- requests -------------------------------------------------------------------------------

    async def _until_not_leaving(self, key: ModelKey, deadline: float, is_request: bool) -> bool:
        """Wait while `key` is on its way out; return whether that took any waiting."""
        if self._clock() >= self._state.impatient_at:
            self._go_on()  # a load may have waited long enough to have this very model sent away
        waited = False
        while (entry := self._state.entries.get(key)) is not None and entry.is_leaving:
            waited = True
            if not await _done(entry.gone, deadline):
                if is_request:
                    self._observer.requested(key, "waited")
                raise OverloadedError(f"model {key} is being evicted: try again later")
        return waited

    def _hold(
        self, key: ModelKey, waited: bool, is_request: bool, evicts_after_s: float
    ) -> Entry[M]:
        """Return the entry of `key` with one more hold; begin its load if there is none."""
        if self._state.ending:
            raise _ENDING.copy()
        entry = self._state.entries.get(key)
        if entry is None:
            self._quarantine.check(key)
            if is_request:
                self._observer.requested(key, "missed")
            entry = self._state.add(key)
            entry.evicts_after_s = evicts_after_s
            self._state.use(entry)
            entry.task = self._spawn(self._load(entry))
            self._go_on()
            return entry
        outcome: Outcome = "waited" if waited or entry.is_loading else "hit"
        if is_request:
            self._observer.requested(key, outcome)
        entry.evicts_after_s = min(entry.evicts_after_s, evicts_after_s)
        self._state.use(entry)
        return entry

    async def _until_resident(self, entry: Entry[M], deadline: float) -> None:
        if not await _done(entry.settled, deadline):
            if entry.phase in (Phase.PREPARING, Phase.OPENING):
                raise DeadlineExceededError(f"model {entry.key} is still loading: try again later")
            raise no_room(entry, self._state.limits)
        if entry.error is not None:
            raise entry.error.copy()

    def _release(self, entry: Entry[M]) -> None:
        entry.holds -= 1
        entry.last_used = self._clock()
        if entry.holds:
            return
        if entry.phase in (Phase.QUEUED, Phase.WAITING, Phase.ADMITTED):
            self._drop(entry, None)
        if entry.is_leaving or self._state.has_line:
            self._go_on()

    # --- loads and closes, each a task of its own -----------------------------------------------

    async def _load(self, entry: Entry[M]) -> None:
        try:
            await entry.turn
            started = self._clock()
            prepared = await self._loader.prepare(entry.key)
            prepare_s = self._clock() - started
            if entry.settled.done() or not entry.holds:
                self._state.failed(entry, None)
                return
            self._state.prepared(entry, prepared.estimate)
            self._go_on()
            await entry.turn
            started = self._clock()
            model = await self._loader.open(prepared)
        except asyncio.CancelledError:
            self._state.failed(entry, OverloadedError(f"the load of {entry.key} was cancelled"))
            raise
        except Exception as error:
            failure = _client_error(entry.key, error)
            self._quarantine.failed(entry.key, failure)
            self._state.failed(entry, failure)
        else:
            self._quarantine.loaded(entry.key)
            self._state.opened(entry, model, prepare_s + self._clock() - started)
            if self._state.ending and entry.phase is Phase.RESIDENT:
                self._state.evict([entry.key], "shutdown")
        finally:
            self._go_on()

    async def _close(self, entry: Entry[M]) -> None:
        assert entry.model is not None  # noqa: S101 - it was resident
        try:
            await self._loader.close(entry.model)
        except Exception:
            logger.exception("closing model %s failed; its memory may not be free", entry.key)
        finally:
            self._state.closed(entry)
            self._go_on()

    def _drop(self, entry: Entry[M], error: ServeAppError | None) -> None:
        """Forget a load at once; its task ends on the next occasion."""
        self._state.failed(entry, error)
        assert entry.task is not None  # noqa: S101 - every load has one
        entry.task.cancel()

    def _send_away(self, entry: Entry[M]) -> asyncio.Future[None]:
        """Begin or go on unloading; return what to wait for before looking again."""
        if entry.key in self._state.limits.pinned:
            raise InvalidParameterError(f"model {entry.key} is pinned; remove it from pinned first")
        if entry.is_loading:
            return entry.settled
        gone = entry.gone
        if entry.phase is Phase.RESIDENT:
            self._state.evict([entry.key], "unloaded")
            self._go_on()
        return gone

    def _go_on(self) -> None:
        """Take the decisions that are due and begin the closes that they ask for."""
        for entry in self._state.decide():
            self._spawn(self._close(entry))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_ENDING = ReplicaFailingError("this replica is shutting down: try again later")


def _deadline(timeout_s: float) -> float:
    return asyncio.get_running_loop().time() + timeout_s


async def _done(future: asyncio.Future[None], deadline: float) -> bool:
    """Wait for `future` until `deadline`, without cancelling it; return whether it is done."""
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    done, _ = await asyncio.wait({future}, timeout=left)
    return bool(done)


def _client_error(key: ModelKey, error: Exception) -> ServeAppError:
    if isinstance(error, ServeAppError):
        return error
    logger.error("loading model %s failed unexpectedly", key, exc_info=error)
    return ModelBrokenError(f"model {key} could not be loaded: {type(error).__name__}: {error}")
