"""The cache's state and every decision on it: synchronous, so nothing can come in between.

Two ledgers say who holds what. `held` is the truth: resident, opening and leaving models, whose
memory is taken until their close has ended. `planned` is what `held` will be once everything
decided so far has happened: without the leaving models, with the admitted loads. Admission works
on `planned`, so a promised room is not promised twice; a load opens when `held` has the room too,
so the budget is kept while closes are still running.

Loads stand in one line, in the order of their requests. A load for which there is no room lets
later ones pass, for at most `patience_s`. From then on nobody passes it, and it may have models
sent away that are in use: they take no new leases and go when their present ones end. So neither
does one large model block the others while a lease is long, nor can it be kept out for ever by
small ones or by models that always have some lease.
"""

import math
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from serve_app.cache.admission import CacheLimits, Verdict, admit, refusal, surplus
from serve_app.cache.entry import Entry, Phase
from serve_app.cache.ledger import ByteLedger
from serve_app.cache.loader import Loaded
from serve_app.cache.observer import CacheObserver, EvictionReason
from serve_app.cache.policies import Policy, Usage
from serve_app.errors import OverloadedError, ServeAppError
from serve_app.types import Footprint, ModelKey

M = TypeVar("M", bound=Loaded)

_MEASURED_LIMIT = 4096
_FOR_ROOM: frozenset[EvictionReason] = frozenset({"budget", "max_models", "reconfigured"})


class CacheState(Generic[M]):
    """Entries, ledgers and the line; `decide` moves everything on that can be moved."""

    def __init__(
        self,
        limits: CacheLimits,
        policy: Policy,
        observer: CacheObserver,
        clock: Callable[[], float],
        *,
        max_concurrent_loads: int,
        max_concurrent_prepares: int,
        patience_s: float,
    ) -> None:
        self.limits = limits
        self.entries: dict[ModelKey, Entry[M]] = {}
        self.held = ByteLedger()
        self.planned = ByteLedger()
        self.ending = False  # set for good: nothing is loaded any more and everything leaves
        self.impatient_at = math.inf  # when the next load in the line loses its patience
        self._policy = policy
        self._observer = observer
        self._clock = clock
        self._max_running = {
            Phase.PREPARING: max_concurrent_prepares,
            Phase.OPENING: max_concurrent_loads,
        }
        self._patience_s = patience_s
        self._line: dict[ModelKey, Entry[M]] = {}  # loads up to ADMITTED, the oldest first
        self._running: set[Entry[M]] = set()  # loads that prepare or open
        self._leaving: dict[ModelKey, Entry[M]] = {}
        self._measured: dict[ModelKey, Footprint] = {}
        self._told: frozenset[ModelKey] = frozenset()

    @property
    def has_line(self) -> bool:
        """Whether any load waits for a turn or for room."""
        return bool(self._line)

    def keys(self) -> frozenset[ModelKey]:
        """Return the models that are resident or loading."""
        return frozenset(key for key, entry in self.entries.items() if not entry.is_leaving)

    # --- the stations of one load -------------------------------------------------------------

    def add(self, key: ModelKey) -> Entry[M]:
        """Put a new load at the end of the line."""
        self._refuse_hopeless(key)
        entry = self.entries[key] = self._line[key] = Entry(key)
        self._tell_change()
        return entry

    def use(self, entry: Entry[M]) -> None:
        """Count one more lease of a model, or one more request that waits for it."""
        entry.holds += 1
        entry.uses += 1
        entry.last_used = self._clock()
        self._policy.used(entry.key)

    def prepared(self, entry: Entry[M], estimate: Footprint) -> None:
        """Let a load whose file is ready wait for room."""
        self._running.discard(entry)
        known = self._measured.get(entry.key, estimate)
        entry.need = max(estimate, known, key=lambda footprint: footprint.total_bytes)
        entry.since = self._clock()
        entry.wait_again(Phase.WAITING)

    def opened(self, entry: Entry[M], model: M, load_s: float) -> None:
        """Make an opened model resident, or send it away if it turned out too large."""
        self._running.discard(entry)
        entry.model, entry.load_s, entry.last_used = model, load_s, self._clock()
        entry.need = model.footprint
        self._remember(entry.key, entry.need)
        self.held.replace(entry.key, entry.need)
        self.planned.remove(entry.key)
        if not self.limits.allow_beside(self.planned, entry.need):
            self._take_back_promises()  # memory that is taken goes before memory that is promised
        idle, _ = self._evictable()
        may_go = self._may_go_for(entry, idle)
        admission = admit(entry.key, entry.need, self.planned, may_go, self.limits)
        if admission.verdict is Verdict.FITS:
            self.planned.add(entry.key, entry.need)
            self._settle(entry, Phase.RESIDENT)
            self._observer.loaded(entry.key, load_s, model.phases_s)
            self.evict(admission.victims, admission.reason)
        else:
            self.reject(entry, refusal(admission.verdict, entry.key, entry.need, self.limits))

    def reject(self, entry: Entry[M], error: ServeAppError) -> None:
        """Send away an opened model that must not become resident; it is in no plan."""
        entry.error = error
        self._leaving[entry.key] = entry
        self._settle(entry, Phase.LEAVING)
        self._observer.load_failed(entry.key, error)
        self._tell_change()

    def failed(self, entry: Entry[M], error: ServeAppError | None) -> None:
        """Forget a load that failed, or with no error, one that nobody wants any more."""
        if entry.settled.done():
            return
        self._running.discard(entry)
        if entry.phase is Phase.OPENING:
            self.held.remove(entry.key)
        if entry.phase in (Phase.ADMITTED, Phase.OPENING):
            self.planned.remove(entry.key)
        self._line.pop(entry.key, None)
        del self.entries[entry.key]
        entry.error = error
        self._settle(entry, Phase.GONE)
        entry.gone.set_result(None)
        if error is not None:
            self._observer.load_failed(entry.key, error)
        self._tell_change()

    def evict(self, keys: Iterable[ModelKey], reason: EvictionReason) -> None:
        """Send resident models away; each is closed when its last lease has ended."""
        for key in keys:
            entry = self._leaving[key] = self.entries[key]
            entry.phase, entry.reason = Phase.LEAVING, reason
            self.planned.remove(key)
        self._tell_change()

    def closed(self, entry: Entry[M]) -> None:
        """Give free the bytes of a model whose close has ended, well or not."""
        self.held.remove(entry.key)
        del self.entries[entry.key]
        entry.phase, entry.model = Phase.GONE, None
        entry.gone.set_result(None)

    def reconfigure(self, limits: CacheLimits, policy: Policy | None) -> None:
        """Take new limits and send away what they do not allow, models in use included.

        A `policy` of another class replaces the one in force; one of the same class does not,
        since what that has learnt is worth keeping. No model goes for the sake of a policy.
        """
        self.limits = limits
        if policy is not None and type(policy) is not type(self._policy):
            self._policy = policy
        self._take_back_promises()
        self._let_stay()
        idle, leased = self._evictable()
        victims, _ = surplus(self.planned, idle + leased, limits)
        self.evict(victims, "reconfigured")

    # --- the decision ---------------------------------------------------------------------------

    def decide(self) -> list[Entry[M]]:
        """Give room and turns to whoever can have them; return the models to be closed now."""
        self._let_stay()
        self._give_room()
        self._give_turns()
        return self._take_leavers()

    def _let_stay(self) -> None:
        """Keep models that are still in use and for which there is room after all."""
        for key, entry in list(self._leaving.items()):
            if self.ending or entry.error is not None or not entry.holds:
                continue
            pinned = key in self.limits.pinned
            has_room = self.limits.allow_beside(self.planned, entry.need)
            if pinned or (has_room and not entry.unloads):
                del self._leaving[key]
                self.planned.add(key, entry.need)
                entry.stay()
                self._tell_change()

    def _give_room(self) -> None:
        """Promise room to waiting loads, the oldest first."""
        self.impatient_at = math.inf
        waiting = [entry for entry in self._line.values() if entry.phase is Phase.WAITING]
        if not waiting:
            return
        now = self._clock()
        idle, leased = self._evictable()
        for entry in waiting:
            patient_until = entry.since + self._patience_s
            spare = entry.evicts_after_s > 0
            impatient = now >= patient_until and not spare
            may_go = self._may_go_for(entry, [*idle, *leased] if impatient else idle)
            admission = admit(entry.key, entry.need, self.planned, may_go, self.limits)
            if admission.verdict is Verdict.FITS:
                entry.phase = Phase.ADMITTED
                entry.victims = tuple(self.entries[key] for key in admission.victims)
                self.planned.add(entry.key, entry.need)
                self.evict(admission.victims, admission.reason)
            elif admission.verdict is not Verdict.BUSY or spare:
                error = refusal(admission.verdict, entry.key, entry.need, self.limits)
                entry.turn.set_exception(error)
                self.failed(entry, error)  # now, so that nobody joins it
            elif impatient:
                return
            else:
                self.impatient_at = min(self.impatient_at, patient_until)

    def _give_turns(self) -> None:
        """Let loads open and prepare, the oldest first, as many as may run at once."""
        for entry in list(self._line.values()):
            if entry.phase is Phase.QUEUED and self._has_turn(Phase.PREPARING):
                self._start(entry, Phase.PREPARING)
            elif (
                entry.phase is Phase.ADMITTED
                and self._has_turn(Phase.OPENING)
                and self._may_open(entry)
            ):
                self.held.add(entry.key, entry.need)
                del self._line[entry.key]
                self._start(entry, Phase.OPENING)

    def _has_turn(self, phase: Phase) -> bool:
        return sum(entry.phase is phase for entry in self._running) < self._max_running[phase]

    def _may_open(self, entry: Entry[M]) -> bool:
        # Its own victims must be gone: a smaller load must not take, one after another, the bytes
        # that were cleared for a larger one.
        waits = any(victim.phase in (Phase.LEAVING, Phase.CLOSING) for victim in entry.victims)
        return not waits and self.limits.allow_beside(self.held, entry.need)

    def _take_leavers(self) -> list[Entry[M]]:
        """Return the leaving models that nobody uses any more: they close now."""
        leavers = [entry for entry in self._leaving.values() if not entry.holds]
        for entry in leavers:
            entry.phase = Phase.CLOSING
            del self._leaving[entry.key]
            if entry.error is None:
                # Not when it was chosen: a model in use may stay after all, and then the policy
                # would hold its high priority against all the others.
                if entry.reason in _FOR_ROOM:
                    self._policy.evicted(self._usage(entry))
                self._observer.evicted(entry.key, entry.reason)
        return leavers

    # --- parts of the above ---------------------------------------------------------------------

    def _refuse_hopeless(self, key: ModelKey) -> None:
        """Raise at once for a model that was measured and cannot fit."""
        known = self._measured.get(key)
        if known is not None and known.total_bytes > self.limits.budget_bytes:
            raise refusal(Verdict.NEVER, key, known, self.limits)

    def _remember(self, key: ModelKey, footprint: Footprint) -> None:
        self._measured.pop(key, None)
        self._measured[key] = footprint
        if len(self._measured) > _MEASURED_LIMIT:
            del self._measured[next(iter(self._measured))]

    def _start(self, entry: Entry[M], phase: Phase) -> None:
        entry.phase, entry.victims = phase, ()
        self._running.add(entry)
        entry.turn.set_result(None)

    def _settle(self, entry: Entry[M], phase: Phase) -> None:
        entry.phase = phase
        entry.settled.set_result(None)

    def _take_back_promises(self) -> None:
        for entry in self._line.values():
            if entry.phase is Phase.ADMITTED:
                entry.phase, entry.victims = Phase.WAITING, ()
                self.planned.remove(entry.key)

    def _evictable(self) -> tuple[list[ModelKey], list[ModelKey]]:
        """Return the resident models that are not pinned: the idle and the leased, ranked."""
        idle: list[Usage] = []
        leased: list[Usage] = []
        for key, entry in self.entries.items():
            if entry.phase is Phase.RESIDENT and key not in self.limits.pinned:
                (leased if entry.holds else idle).append(self._usage(entry))
        rank = self._policy.order
        return [usage.key for usage in rank(idle)], [usage.key for usage in rank(leased)]

    def _may_go_for(self, entry: Entry[M], ranked: Iterable[ModelKey]) -> list[ModelKey]:
        """Return those of the resident models `ranked` that may be evicted for `entry`."""
        since = self._clock() - entry.evicts_after_s
        found = ((key, self.entries[key]) for key in ranked)
        return [key for key, one in found if not one.is_leaving and one.last_used <= since]

    def _usage(self, entry: Entry[M]) -> Usage:
        # Not what its graph takes as well, if it holds that last: the seconds of its own load do
        # not tell what making the graph again would cost, so the graph's bytes would be unfair.
        charge = self.limits.charge(entry.need.own_bytes)
        return Usage(entry.key, charge, entry.load_s, entry.last_used, entry.uses)

    def _tell_change(self) -> None:
        keys = self.keys()
        if keys != self._told:
            self._told = keys
            self._observer.changed(keys)


def no_room(entry: Entry[M], limits: CacheLimits) -> ServeAppError:
    """Return the error of a request whose time ended before `entry` had its turn."""
    if entry.phase is Phase.QUEUED:
        return OverloadedError(f"model {entry.key} had no turn to load in time: try again later")
    return refusal(Verdict.BUSY, entry.key, entry.need, limits)
