"""The routing simulation on a small fleet: nothing is lost, and ours is better than stock's."""

import random
from collections.abc import Sequence
from functools import cache, partial

import pytest

from benchmarks.routing.events import Timeline
from benchmarks.routing.replica import Job, Node, Replica, ReplicaConfig
from benchmarks.routing.results import Figures, figures
from benchmarks.routing.simulator import OURS, STOCK, STOCK_ROUTER, Simulation, System
from benchmarks.routing.workload import Cell, Request, Scale, SimModel, Trace, make_trace
from benchmarks.workloads import W2, W4
from serve_app.cache import LRU
from serve_app.types import ModelKey

SMALL = Scale(replicas=24, nodes=6, ingresses=3, models=600, requests=10_000)
CELLS = (Cell(W2, 0.5, 0.6), Cell(W4, 0.5, 0.6))
SEED = 1


class Checked(Simulation):
    """A simulation whose replicas are looked at whenever a request ends."""

    def _finished(self, job: Job) -> None:
        super()._finished(job)
        for replica in self.replicas.values():
            held = [one.model.own_bytes for one in replica.resident.values()]
            assert sum(held) <= replica.ledger.used_bytes <= self.budget_bytes


@cache
def simulated(system: System, cell: Cell) -> Simulation:
    """Simulate the small fleet, once for all tests."""
    simulation = Simulation(system, cell, SMALL, make_trace(cell, SMALL, SEED), SEED)
    simulation.run()
    return simulation


def figures_of(system: System, cell: Cell) -> Figures:
    """Return what the small fleet came to."""
    return figures(simulated(system, cell).outcome)


def taken(simulation: Simulation) -> int:
    """Return how many requests all replicas have taken, from the start."""
    counts = [replica.counts for replica in simulation.replicas.values()]
    return sum(one.hits + one.misses + one.joined for one in counts)


# --- ours and stock's -----------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.workload.name)
def test_ours_misses_at_most_half_as_often(cell: Cell) -> None:
    """Over the same replicas; and the slowest requests are faster."""
    ours, stock = figures_of(OURS, cell), figures_of(STOCK_ROUTER, cell)
    assert ours.misses <= 0.5 * stock.misses
    assert ours.p99_s < stock.p99_s
    assert ours.in_time > stock.in_time
    assert ours.doubled < 0.5 * stock.doubled


@pytest.mark.parametrize("system", [OURS, STOCK_ROUTER], ids=lambda system: system.name)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.workload.name)
def test_every_request_is_answered_and_counted_once(system: System, cell: Cell) -> None:
    """A hit, a miss or a joined load each; no answer before its time on the engine."""
    simulation = simulated(system, cell)
    outcome = simulation.outcome
    assert outcome.answered == taken(simulation) == SMALL.requests
    assert len(outcome.latencies) == 0.8 * SMALL.requests  # without the warm-up
    assert min(outcome.latencies) >= 0.015


@pytest.mark.parametrize("system", [OURS, STOCK, STOCK_ROUTER], ids=lambda system: system.name)
def test_the_budget_is_never_exceeded(system: System) -> None:
    """Not even while models are swapped all the time."""
    scale = Scale(replicas=4, nodes=2, ingresses=2, models=60, requests=600)
    cell = Cell(W2, 0.45, 0.6)
    trace = make_trace(cell, scale, SEED)
    outcome = Checked(system, cell, scale, trace, SEED).run()
    assert outcome.answered == scale.requests
    assert sum(one.evictions for one in outcome.counts) > 20


def test_a_budget_must_hold_the_largest_model() -> None:
    """Else its requests would wait for ever."""
    scale = Scale(replicas=64, nodes=2, ingresses=2, models=60, requests=10)
    trace = make_trace(CELLS[0], scale, SEED)
    with pytest.raises(ValueError, match="largest model"):
        Simulation(OURS, CELLS[0], scale, trace, SEED)


def test_a_run_follows_from_its_seed() -> None:
    """Everything but the time of a decision is virtual."""
    scale = Scale(replicas=4, nodes=2, ingresses=2, models=60, requests=500)
    cell = CELLS[0]
    one, other = (
        Simulation(OURS, cell, scale, make_trace(cell, scale, 7), 7).run() for _ in range(2)
    )
    assert one.latencies == other.latencies
    assert one.counts == other.counts


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("workload", [W2, W4], ids=lambda workload: workload.name)
def test_a_trace_offers_its_load_in_either_half(workload: object, apart: bool) -> None:
    """In order of time, and as much work as the replicas are to be busy."""
    cell = Cell(W2 if workload is W2 else W4, 0.5, 0.6, apart=apart)
    trace = make_trace(cell, SMALL, SEED)
    times = [request.at_s for request in trace.requests]
    assert len(times) == SMALL.requests
    assert times == sorted(times)
    half = len(times) // 2
    for first, last in ((0, half), (half, len(times))):
        work_s = sum(request.model.service_s for request in trace.requests[first:last])
        assert load(work_s, times[last - 1] - times[first]) == pytest.approx(0.6, rel=0.02)


def load(work_s: float, seconds: float) -> float:
    """Return the part of all replicas that the work takes."""
    return work_s / seconds / SMALL.replicas


def test_a_cold_model_surges_to_half_of_all_requests() -> None:
    """W4: nothing of it before the middle."""
    trace = make_trace(Cell(W4, 0.5, 0.6), SMALL, SEED)
    half = len(trace.requests) // 2
    end = [request.model for request in trace.requests[-half // 2 :]]
    surging = max(set(end), key=end.count)
    assert end.count(surging) / len(end) == pytest.approx(0.5, abs=0.05)
    assert not any(request.model is surging for request in trace.requests[:half])


# --- one replica ----------------------------------------------------------------------------------


class Bench:
    """One replica on a timeline, with models of 40, 40 and 60 bytes that load in a second."""

    def __init__(self, max_loads: int = 2) -> None:
        self.timeline = Timeline()
        self.models = [model(name, size) for name, size in (("a", 40), ("b", 40), ("c", 60))]
        node = Node("n", {one.id for one in self.models})
        config = ReplicaConfig(100, 200, max_loads, 0, LRU)
        self.replica = Replica("r", node, config, self.timeline)
        self.answered: list[tuple[float, str]] = []
        self._asked = 0

    def ask(self, *names: str, at_s: float) -> None:
        """Send a request for each model at a time."""
        for name in names:
            self._asked += 1
            wanted = next(one for one in self.models if one.key.name == name)
            job = Job(Request(self._asked, at_s, wanted), self._finished)
            self.timeline.at(at_s, partial(self._send, job))

    def run(self) -> None:
        """Go on until all requests are answered."""
        self.timeline.run(lambda: len(self.answered) == self._asked)

    def _send(self, job: Job) -> None:
        assert self.replica.receive(job)

    def _finished(self, job: Job) -> None:
        self.answered.append((round(self.timeline.now, 6), job.request.model.key.name))


def model(name: str, size: int) -> SimModel:
    """Return a model that takes a second to load and a tenth of one to run."""
    key = ModelKey(name, "1")
    return SimModel(key, str(key), size, 1.0, 0.1)


def test_requests_join_a_load_in_progress() -> None:
    """One load, and the engine takes them one after the other."""
    bench = Bench()
    bench.ask("a", at_s=0)
    bench.ask("a", "a", at_s=0.5)
    bench.run()
    counts = bench.replica.counts
    assert (counts.misses, counts.joined, counts.hits) == (1, 2, 0)
    assert bench.answered == [(1.1, "a"), (1.2, "a"), (1.3, "a")]


@pytest.mark.parametrize(("max_loads", "last"), [(1, 2.1), (2, 1.2)])
def test_loads_run_beside_each_other_as_far_as_allowed(max_loads: int, last: float) -> None:
    """The second waits for its turn, or only for the engine."""
    bench = Bench(max_loads)
    bench.ask("a", "b", at_s=0)
    bench.run()
    assert bench.answered == [(1.1, "a"), (last, "b")]


def test_what_is_in_use_is_not_evicted() -> None:
    """The third model waits until the first has been answered, then takes its room."""
    bench = Bench()
    bench.ask("a", "b", at_s=0)
    bench.ask("b", "b", "b", at_s=1.0)
    bench.ask("c", at_s=1.05)
    bench.run()
    assert bench.replica.counts.evictions == 1
    assert {one.model.key.name for one in bench.replica.resident.values()} == {"b", "c"}
    assert bench.replica.counts.peak_bytes == 100
    # In the order of a fair queue; `c` loads from 1.1 s on, when `a` has been answered.
    assert bench.answered[-1] == (2.2, "c")


def test_a_model_that_is_always_in_use_gives_way_in_the_end() -> None:
    """After a second of waiting the load may have it drained; later requests load it anew."""
    bench = Bench()
    for tenth in range(60):
        bench.ask("a", "b", at_s=0.2 * tenth)
    bench.ask("c", at_s=3.0)
    bench.run()
    first_c = next(at for at, name in bench.answered if name == "c")
    assert 5.0 < first_c < 7.0
    assert len(bench.answered) == 121


def test_a_timeline_runs_in_order_and_says_when_it_stands_still() -> None:
    """By time, then by when they were made."""
    timeline, seen = Timeline(), []
    timeline.at(2.0, lambda: seen.append("late"))
    timeline.at(1.0, lambda: seen.append("first"))
    timeline.at(1.0, lambda: timeline.after(0.0, lambda: seen.append("then")))
    with pytest.raises(RuntimeError, match="stands still at 2.000 s"):
        timeline.run(lambda: False)
    assert seen == ["first", "then", "late"]


# --- routing tasks --------------------------------------------------------------------------------


def burst(fleet: Sequence[SimModel], count: int) -> Trace:
    """Return requests for random models, all at once."""
    rng = random.Random(1)  # noqa: S311 - a test is no secret
    requests = [Request(number, 0.0, rng.choice(fleet)) for number in range(count)]
    return Trace(fleet, requests, 0)


@pytest.mark.parametrize("system", [OURS, STOCK, STOCK_ROUTER], ids=lambda system: system.name)
def test_more_requests_than_there_are_places_wait_and_are_answered(system: System) -> None:
    """Replicas reject what is too much; nothing is lost or answered twice."""
    scale = Scale(replicas=2, nodes=1, ingresses=2, models=20, requests=400)
    cell = Cell(W2, 1.0, 0.6)
    fleet = make_trace(cell, scale, SEED).fleet
    simulation = Simulation(system, cell, scale, burst(fleet, 400), SEED)
    outcome = simulation.run()
    assert outcome.answered == len(outcome.latencies) == taken(simulation) == 400
