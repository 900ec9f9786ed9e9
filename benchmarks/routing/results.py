"""What one run of the simulation comes to, as figures that can be averaged and compared. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import numpy as np

from benchmarks.eviction import FleetModel
from benchmarks.eviction import simulate as one_cache
from benchmarks.routing.simulator import Outcome, simulate, system_named
from benchmarks.routing.workload import Cell, Scale, make_trace
from serve_app.cache import GDSF, CacheLimits


@dataclass(frozen=True, slots=True)
class Run:
    """One system in one cell with one seed."""

    cell: Cell
    system: str
    seed: int
    scale: Scale


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts are of one trace without its warm-up; times in seconds.

    misses: loads begun; first: of them, of models that nobody had loaded yet
    copied: of them, of models that another replica had or was loading
    cold: requests that waited for a load, their own or one in progress
    in_time: part of the requests that took at most 5 x the engine's time
    copies, most_copies: of a model that is held at all: mean, and the largest number
    doubled: part of the loads of rare models whose model another replica already had
    balance: work of the busiest replica over the mean
    decision_us, slow_decision_us: microseconds of a routing decision, median and 99th percentile
    """

    requests: float
    misses: float
    first: float
    copied: float
    cold: float
    fetches: float
    evictions: float
    p50_s: float
    p99_s: float
    in_time: float
    copies: float
    most_copies: float
    doubled: float
    balance: float
    decision_us: float
    slow_decision_us: float

    @property
    def miss_ratio(self) -> float:
        """Misses per request."""
        return self.misses / self.requests


def measure(run: Run) -> Figures:
    """Simulate one run."""
    trace = make_trace(run.cell, run.scale, run.seed)
    return figures(simulate(system_named(run.system), run.cell, run.scale, trace, run.seed))


def floor(cell: Cell, scale: Scale, seed: int) -> float:
    """Return the misses per request of one cache with all budgets, where no load takes any time.

    Neither copies nor full queues nor waiting: what placing models well comes to at best, with
    this eviction policy.
    """
    trace = make_trace(cell, scale, seed)
    fleet = {one.key: FleetModel(one.own_bytes, one.reload_s, one.reload_s) for one in trace.fleet}
    budget_bytes = int(cell.room * sum(one.own_bytes for one in trace.fleet))
    keys = [request.model.key for request in trace.requests]
    return one_cache(GDSF(), fleet, keys, CacheLimits(budget_bytes)).miss_ratio


def figures(outcome: Outcome) -> Figures:
    """Sum up what was seen."""
    requests, counts = len(outcome.latencies), outcome.counts
    p50_s, p99_s = np.quantile(outcome.latencies, [0.5, 0.99])
    decision, slow_decision = np.quantile(outcome.decision_ns, [0.5, 0.99]) / 1000
    busy = [one.busy_s for one in counts]
    return Figures(
        requests=requests,
        misses=sum(one.misses for one in counts),
        first=outcome.first,
        copied=outcome.copied,
        cold=outcome.cold / requests,
        fetches=sum(one.fetches for one in counts),
        evictions=sum(one.evictions for one in counts),
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        in_time=outcome.in_time / requests,
        copies=fmean(mean for mean, _ in outcome.copies),
        most_copies=max(most for _, most in outcome.copies),
        doubled=outcome.doubled / max(1, outcome.rare),
        balance=max(busy) / fmean(busy),
        decision_us=float(decision),
        slow_decision_us=float(slow_decision),
    )


def mean(some: Sequence[Figures]) -> Figures:
    """Return the mean of each figure over seeds."""
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: fmean(getattr(one, name) for one in some) for name in names})
