"""One system under one trace: replicas, routers, and the controller that carries news between."""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from benchmarks.routing.events import Timeline
from benchmarks.routing.ingress import Ingress
from benchmarks.routing.replica import Counts, Job, Node, Replica, ReplicaConfig
from benchmarks.routing.routers import FleetRouting, Router
from benchmarks.routing.stock import StockRouting
from benchmarks.routing.workload import Cell, Scale, SimModel, Trace
from serve_app.cache import GDSF, LRU, Policy
from serve_app.routing.fleet_view import ReplicaState
from serve_app.routing.idfilter import IdFilter
from serve_app.routing.stats import RoutingStats, rounded_free_bytes
from serve_app.types import ModelKey

CONTROL_S = 0.1
"""The controller looks for news so often, and tells every router if there is any."""
TELL_S = (0.01, 0.05)
STATS_S = 0.5
STATS_DELAY_S = 0.1
"""The controller asks each replica for its statistics so often, and has them so much later."""
FILTER_S = 5.0
"""A node says anew so often which models are prepared there."""
SAMPLE_S = 1.0
PREPARED = 0.5
"""Part of the fleet whose prepared weights lie on a node at the start, drawn for each node."""
RARE, LATELY_S = 0.05, 5.0
"""A model is rare while its requests lately took less of one replica than this."""


@dataclass(frozen=True, slots=True)
class System:
    """What is compared.

    push_s: at most so often a replica tells of the models it has
    by_model, by_grpc: see `Ingress`
    """

    name: str
    make_router: Callable[[Callable[[], float], random.Random], Router]
    make_policy: Callable[[], Policy]
    max_ongoing: int
    max_loads: int
    parks: bool
    push_s: float
    by_model: bool
    by_grpc: bool


def _stock(clock: Callable[[], float], rng: random.Random) -> Router:
    return StockRouting(clock, rng)


def _ours(clock: Callable[[], float], _: random.Random) -> Router:
    return FleetRouting(clock)


STOCK = System("stock", _stock, LRU, 5, 1, parks=False, push_s=0.1, by_model=True, by_grpc=False)
"""As documented: Serve's router and wrapper (one load at a time, LRU), at most 5 requests."""
STOCK_ROUTER = System(
    "stock router", _stock, GDSF, 64, 2, parks=False, push_s=0.5, by_model=True, by_grpc=True
)
"""Serve's router over our replicas: only the router differs from ours."""
OURS = System("ours", _ours, GDSF, 64, 2, parks=False, push_s=0.5, by_model=False, by_grpc=True)
SYSTEMS = (STOCK, STOCK_ROUTER, OURS)


def system_named(name: str) -> System:
    """Return the system of this name; runs travel between processes by name."""
    return next(system for system in SYSTEMS if system.name == name)


@dataclass(slots=True)
class Outcome:
    """What was seen; latencies in seconds from the arrival, in the order of the answers.

    first: loads of models that nobody had loaded yet; copied: of models that another replica had
    rare: loads of rare models; doubled: those of them that another replica already had
    copies: mean and most copies of a model that is held at all, over all samples
    """

    latencies: list[float] = field(default_factory=list)
    in_time: int = 0
    cold: int = 0
    counts: list[Counts] = field(default_factory=list)
    copies: list[tuple[float, int]] = field(default_factory=list)
    first: int = 0
    copied: int = 0
    rare: int = 0
    doubled: int = 0
    decision_ns: list[int] = field(default_factory=list)
    seconds: float = 0.0
    answered: int = 0


class Simulation:
    """Puts one system together and runs it."""

    def __init__(self, system: System, cell: Cell, scale: Scale, trace: Trace, seed: int) -> None:
        """Make replicas on their nodes, and ingresses that know of them.

        Raises:
            ValueError: the fleet's share of room for one replica does not hold its largest model
        """
        self._system = system
        self._trace = trace
        self._timeline = Timeline()
        self._rng = random.Random(seed)  # noqa: S311 - a simulation is no secret
        self.outcome = Outcome()
        total = sum(model.own_bytes for model in trace.fleet)
        budget = int(cell.room * total / scale.replicas)
        self.budget_bytes = budget
        largest = max(model.own_bytes for model in trace.fleet)
        if largest > budget:
            raise ValueError(f"budgets of {budget} bytes do not hold the largest model, {largest}")
        config = ReplicaConfig(
            budget,
            system.max_ongoing,
            system.max_loads,
            budget if system.parks else 0,
            system.make_policy,
        )
        nodes = [self._node(number) for number in range(scale.nodes)]
        self.replicas = {
            f"r{number:03}": Replica(
                f"r{number:03}", nodes[number % scale.nodes], config, self._timeline
            )
            for number in range(scale.replicas)
        }
        self.ingresses = [self._ingress() for _ in range(scale.ingresses)]
        self._controller = Controller(
            system, list(self.replicas.values()), self.ingresses, self._timeline, self._rng
        )
        self._before: list[Counts] = []
        self._loaded: set[ModelKey] = set()
        self._asked: dict[ModelKey, list[float]] = {}
        for request in trace.requests:
            self._asked.setdefault(request.model.key, []).append(request.at_s)
        for replica in self.replicas.values():
            replica.missed = self._missed

    def run(self) -> Outcome:
        """Play the trace until every request has been answered."""
        self._controller.start()
        self._arrive(0)
        self._timeline.every(SAMPLE_S, SAMPLE_S, self._sample)
        self._timeline.run(lambda: self.outcome.answered == len(self._trace.requests))
        outcome = self.outcome
        outcome.counts = [
            _difference(replica.counts, before)
            for replica, before in zip(self.replicas.values(), self._before, strict=True)
        ]
        outcome.decision_ns = [ns for ingress in self.ingresses for ns in ingress.decision_ns]
        return outcome

    def _node(self, number: int) -> Node:
        fleet = self._trace.fleet
        prepared = {model.id for model in fleet if self._rng.random() < PREPARED}
        return Node(f"n{number:02}", prepared)

    def _ingress(self) -> Ingress:
        timeline = self._timeline
        router = self._system.make_router(lambda: timeline.now, self._rng)
        by_model = self._system.by_model
        return Ingress(
            router,
            self.replicas,
            timeline,
            self._finished,
            by_model=by_model,
            by_grpc=self._system.by_grpc,
        )

    # --- what happens -------------------------------------------------------------------------

    def _arrive(self, number: int) -> None:
        requests = self._trace.requests
        request = requests[number]

        def arrive() -> None:
            if number == self._trace.counted_from:
                self._before = [_copy(one.counts) for one in self.replicas.values()]
                self.outcome.seconds = requests[-1].at_s - request.at_s
            self.ingresses[number % len(self.ingresses)].arrive(request)
            if number + 1 < len(requests):
                self._arrive(number + 1)

        self._timeline.at(request.at_s, arrive)

    def _finished(self, job: Job) -> None:
        outcome, request = self.outcome, job.request
        outcome.answered += 1
        if request.number < self._trace.counted_from:
            return
        latency = self._timeline.now - request.at_s
        outcome.latencies.append(latency)
        outcome.in_time += latency <= 5 * request.model.service_s
        outcome.cold += job.cold

    def _missed(self, model: SimModel) -> None:
        """Look whether a model is loaded though another replica has it, or soon will."""
        is_first = model.key not in self._loaded
        self._loaded.add(model.key)
        if not self._before:
            return
        is_copy = any(replica.has(model) for replica in self.replicas.values())
        self.outcome.first += is_first
        self.outcome.copied += is_copy
        now, asked = self._timeline.now, self._asked[model.key]
        lately = bisect_right(asked, now) - bisect_left(asked, now - LATELY_S)
        if lately * model.service_s < RARE * LATELY_S:
            self.outcome.rare += 1
            self.outcome.doubled += is_copy

    def _sample(self) -> None:
        if not self._before:
            return
        copies: dict[str, int] = {}
        for replica in self.replicas.values():
            for id_ in replica.advertised():
                copies[id_] = copies.get(id_, 0) + 1
        self.outcome.copies.append((fmean(copies.values()), max(copies.values())))


class Controller:
    """Serve's controller: what replicas tell reaches routers late, and together."""

    def __init__(
        self,
        system: System,
        replicas: Sequence[Replica],
        ingresses: Sequence[Ingress],
        timeline: Timeline,
        rng: random.Random,
    ) -> None:
        """Learn of each replica's changes from now on."""
        self._system = system
        self._ingresses = ingresses
        self._timeline = timeline
        self._rng = rng
        self._replicas = replicas
        self._known = {
            one.id: ReplicaState(one.id, frozenset(), RoutingStats(), system.max_ongoing)
            for one in replicas
        }
        self._news = True
        self._filters: dict[str, tuple[float, IdFilter]] = {}

    def start(self) -> None:
        """Tell the routers who there is, then keep them up to date."""
        self._tell()
        self._timeline.every(CONTROL_S, CONTROL_S, self._tell)
        for replica in self._replicas:
            self._follow(replica)
            first = self._rng.random() * STATS_S
            self._timeline.every(STATS_S, first, partial(self._ask, replica))

    def _follow(self, replica: Replica) -> None:
        """Have the replica push its ids, at most once in `push_s`."""
        phase, period = self._rng.random() * self._system.push_s, self._system.push_s
        waits = False

        def push() -> None:
            nonlocal waits
            waits = False
            self._take(replica.id, models=replica.advertised())

        def changed() -> None:
            nonlocal waits
            if not waits:
                waits = True
                turns = (self._timeline.now - phase) // period + 1
                self._timeline.at(phase + turns * period, push)

        replica.changed = changed

    def _ask(self, replica: Replica) -> None:
        stats = self._stats(replica)
        self._timeline.after(STATS_DELAY_S, lambda: self._take(replica.id, stats=stats))

    def _stats(self, replica: Replica) -> RoutingStats:
        meter, budget = replica.meter, replica.config.budget_bytes
        return RoutingStats(
            budget_bytes=budget,
            free_bytes=rounded_free_bytes(budget, replica.ledger.used_bytes),
            model_bytes=replica.mean_model_bytes,
            request_s=meter.request_s,
            load_s=meter.load_s,
            loading=frozenset(load.model.id for load in replica.loading.values()),
            parked=frozenset(str(key) for key in replica.parked),
            prepared=self._filter(replica.node),
            busy=meter.busy(),
        )

    def _filter(self, node: Node) -> IdFilter:
        made = self._filters.get(node.id)
        if made is None or self._timeline.now - made[0] >= FILTER_S:
            made = self._filters[node.id] = (self._timeline.now, IdFilter.of(node.prepared))
        return made[1]

    def _take(
        self,
        replica_id: str,
        *,
        models: frozenset[str] | None = None,
        stats: RoutingStats | None = None,
    ) -> None:
        before = self._known[replica_id]
        after = ReplicaState(
            before.id,
            before.models if models is None else models,
            before.stats if stats is None else stats,
            before.max_ongoing,
        )
        if after != before:
            self._known[replica_id] = after
            self._news = True

    def _tell(self) -> None:
        if not self._news:
            return
        self._news = False
        states = list(self._known.values())
        for ingress in self._ingresses:
            self._timeline.after(
                self._rng.uniform(*TELL_S) if self._timeline.now else 0.0,
                partial(ingress.router.update, states),
            )


def simulate(system: System, cell: Cell, scale: Scale, trace: Trace, seed: int) -> Outcome:
    """Return what one system makes of one trace."""
    return Simulation(system, cell, scale, trace, seed).run()


def _copy(counts: Counts) -> Counts:
    return _difference(counts, Counts())


def _difference(after: Counts, before: Counts) -> Counts:
    return Counts(
        after.hits - before.hits,
        after.misses - before.misses,
        after.joined - before.joined,
        after.fetches - before.fetches,
        after.evictions - before.evictions,
        after.busy_s - before.busy_s,
        after.peak_bytes,
    )
