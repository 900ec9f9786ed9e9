"""A replica in virtual time: the cache's own policies, admission and ledger, the real scheduler.

Requests take the engine one at a time; loads run beside it, a few at a time, and requests for a
model that is loading join its load. What is in use is never evicted: a load that finds no room for
`PATIENCE_S` lets nobody pass, and models in use then take no new leases until it has its room.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from benchmarks.routing.events import Timeline
from benchmarks.routing.meter import Meter
from benchmarks.routing.workload import Request, SimModel
from serve_app.cache import CacheLimits, Policy, Usage
from serve_app.cache.admission import Verdict, admit
from serve_app.cache.ledger import ByteLedger
from serve_app.replica.scheduler import FairScheduler, Ticket
from serve_app.routing.stats import rounded
from serve_app.types import Footprint, ModelKey

PATIENCE_S = 1.0
COPY_S = 0.004
COPY_BYTES_PER_S = 10e9
"""A model that is parked in host memory comes back by one copy."""
FETCH_S = 0.25
FETCH_BYTES_PER_S = 100e6
"""What a load takes first where no prepared weights lie on the node."""


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """How a replica is set up.

    max_loads: loads at the same time
    parked_bytes: host memory for weights that left the device
    """

    budget_bytes: int
    max_ongoing: int
    max_loads: int
    parked_bytes: int
    make_policy: Callable[[], Policy]


@dataclass(slots=True)
class Node:
    """A machine: the models whose prepared weights lie on its disk."""

    id: str
    prepared: set[str]


@dataclass(slots=True)
class Counts:
    """What a replica did; `misses` are loads begun, `joined` requests that waited for another's."""

    hits: int = 0
    misses: int = 0
    joined: int = 0
    fetches: int = 0
    evictions: int = 0
    busy_s: float = 0.0
    peak_bytes: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """A request at a replica; `cold` if it waited for a load."""

    request: Request
    finished: Callable[["Job"], None]
    cold: bool = False


@dataclass(slots=True)
class _Resident:
    model: SimModel
    load_s: float
    holds: int = 0
    uses: int = 0
    last_used: float = 0.0
    leaving: bool = False


@dataclass(slots=True, eq=False)
class _Load:
    model: SimModel
    since: float
    waiting: list[Job] = field(default_factory=list)


class Replica:
    """One replica.

    changed: called when the ids that it advertises change; missed: for each load that it begins
    """

    def __init__(self, id_: str, node: Node, config: ReplicaConfig, timeline: Timeline) -> None:
        """Begin with nothing loaded."""
        self.id = id_
        self.node = node
        self.config = config
        self.counts = Counts()
        self.meter = Meter(timeline)
        self.ongoing = 0
        self.changed: Callable[[], None] = lambda: None
        self.missed: Callable[[SimModel], None] = lambda _: None
        self.resident: dict[ModelKey, _Resident] = {}
        self.loading: dict[ModelKey, _Load] = {}
        self.parked: OrderedDict[ModelKey, int] = OrderedDict()
        self.ledger = ByteLedger()
        self._timeline = timeline
        self._policy = config.make_policy()
        self._limits = CacheLimits(config.budget_bytes)
        self._line: list[_Load] = []
        self._opening = 0
        self._scheduler: FairScheduler[Job] = FairScheduler()
        self._busy = False

    def advertised(self) -> frozenset[str]:
        """Return the ids of all models that are resident or loading."""
        ids = {one.model.id for one in self.resident.values() if not one.leaving}
        return frozenset(ids | {load.model.id for load in self.loading.values()})

    @property
    def mean_model_bytes(self) -> int:
        """What a resident model takes, on average; 0 where there is none."""
        sizes = [one.model.own_bytes for one in self.resident.values()]
        return int(rounded(sum(sizes) / len(sizes))) if sizes else 0

    def has(self, model: SimModel) -> bool:
        """Tell whether a model is resident or loading."""
        return model.key in self.resident or model.key in self.loading

    def receive(self, job: Job) -> bool:
        """Take a request unless there are too many already; return whether it was taken."""
        if self.ongoing >= self.config.max_ongoing:
            return False
        self.ongoing += 1
        model = job.request.model
        self._policy.used(model.key)
        known = self.resident.get(model.key)
        if known is not None and not known.leaving:
            self.counts.hits += 1
            self._hold(known, job)
            return True
        job.cold = True
        load = self.loading.get(model.key)
        if load is None:
            self.counts.misses += 1
            self.missed(model)
            load = self.loading[model.key] = _Load(model, self._timeline.now)
            self._line.append(load)
            load.waiting.append(job)
            self.changed()
            self._give_room()
        else:
            self.counts.joined += 1
            load.waiting.append(job)
        return True

    # --- loads --------------------------------------------------------------------------------

    def _give_room(self) -> None:
        """Let loads begin, the oldest first, as far as there are turns and room."""
        for load in list(self._line):
            if self._opening >= self.config.max_loads:
                return
            if load.model.key in self.resident:
                continue  # the copy that is leaving must be gone first
            if self._make_room(load.model):
                self._line.remove(load)
                self._begin(load)
            elif self._is_impatient(load):
                self._drain_for(load.model)
                return

    def _is_impatient(self, load: _Load) -> bool:
        return self._timeline.now - load.since >= PATIENCE_S

    def _make_room(self, model: SimModel) -> bool:
        idle = [one for one in self.resident.values() if not one.holds]
        admission = admit(
            model.key, Footprint(model.own_bytes), self.ledger, self._ranked(idle), self._limits
        )
        if admission.verdict is not Verdict.FITS:
            return False
        for victim in admission.victims:
            self._evict(self.resident[victim])
        self.ledger.add(model.key, Footprint(model.own_bytes))
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.ledger.used_bytes)
        return True

    def _drain_for(self, model: SimModel) -> None:
        """Let models in use take no new leases, as many as are in the way of `model`."""
        leaving = [one.model.key for one in self.resident.values() if one.leaving]
        staying = [one for one in self.resident.values() if not one.leaving]
        ranked = leaving + self._ranked(staying)
        victims = admit(
            model.key, Footprint(model.own_bytes), self.ledger, ranked, self._limits
        ).victims
        for victim in victims:
            # The idle ones are evicted once all of it fits.
            self.resident[victim].leaving = self.resident[victim].holds > 0
        self.changed()

    def _ranked(self, residents: list[_Resident]) -> list[ModelKey]:
        usages = [
            Usage(one.model.key, one.model.own_bytes, one.load_s, one.last_used, one.uses)
            for one in residents
        ]
        return [usage.key for usage in self._policy.order(usages)]

    def _evict(self, one: _Resident) -> None:
        model = one.model
        self.counts.evictions += 1
        self._policy.evicted(Usage(model.key, model.own_bytes, one.load_s, one.last_used, one.uses))
        del self.resident[model.key]
        self.ledger.remove(model.key)
        self._park(model)
        self.changed()

    def _park(self, model: SimModel) -> None:
        if model.own_bytes > self.config.parked_bytes:
            return
        self.parked[model.key] = model.own_bytes
        self.parked.move_to_end(model.key)
        while sum(self.parked.values()) > self.config.parked_bytes:
            self.parked.popitem(last=False)

    def _begin(self, load: _Load) -> None:
        self._opening += 1
        model = load.model
        if self.parked.pop(model.key, None) is not None:
            seconds = COPY_S + model.own_bytes / COPY_BYTES_PER_S
        else:
            seconds = model.reload_s
            if model.id in self.node.prepared:
                self.meter.loaded(seconds)
            else:
                self.counts.fetches += 1
                seconds += FETCH_S + model.own_bytes / FETCH_BYTES_PER_S
        self._timeline.after(seconds, lambda: self._loaded(load, seconds))

    def _loaded(self, load: _Load, seconds: float) -> None:
        self._opening -= 1
        model = load.model
        self.node.prepared.add(model.id)
        del self.loading[model.key]
        one = self.resident[model.key] = _Resident(model, seconds)
        for job in load.waiting:
            self._hold(one, job)
        self._give_room()

    # --- the engine ---------------------------------------------------------------------------

    def _hold(self, one: _Resident, job: Job) -> None:
        one.holds += 1
        one.uses += 1
        one.last_used = self._timeline.now
        service_s = one.model.service_s
        self._scheduler.add(Ticket(job, one.model.id, 0, inf, 1, lambda count: count * service_s))
        self._next()

    def _next(self) -> None:
        if self._busy:
            return
        turn, _ = self._scheduler.take(self._timeline.now)
        if turn is None:
            return
        self._busy = True
        job = turn.tickets[0].work

        def done() -> None:
            self._busy = False
            self._scheduler.done(turn, turn.charged_s)
            self._finish(job)

        self._timeline.after(job.request.model.service_s, done)

    def _finish(self, job: Job) -> None:
        model = job.request.model
        self.counts.busy_s += model.service_s
        self.meter.served(model.id, model.service_s)
        one = self.resident[model.key]
        one.holds -= 1
        one.last_used = self._timeline.now
        self.ongoing -= 1
        job.finished(job)
        if one.leaving and not one.holds:
            self._evict(one)
        if self._line and (not one.holds or self._is_impatient(self._line[0])):
            self._give_room()
        self._next()
