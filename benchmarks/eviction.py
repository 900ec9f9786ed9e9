"""Miss costs of the eviction policies on seeded traces, without any model or server.

Drives the cache's own policies, admission and ledger; a load takes what a table of costs says.
`python -m benchmarks.eviction` prints the tables; with a file name, it writes them there.
"""

import argparse
import bisect
import heapq
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean

from serve_app.cache import GDSF, LRU, CacheLimits, Policy, Usage
from serve_app.cache.admission import Verdict, admit
from serve_app.cache.ledger import ByteLedger
from serve_app.types import Footprint, ModelKey

REQUESTS = 6000
WARM_UP = 0.2  # of a trace; its misses are not counted
SEEDS = (1, 2, 3)
ROOMS: Mapping[str, Callable[[int, int], CacheLimits]] = {
    "10 %": lambda total_bytes, _: CacheLimits(total_bytes // 10),
    "25 %": lambda total_bytes, _: CacheLimits(total_bytes // 4),
    "50 %": lambda total_bytes, _: CacheLimits(total_bytes // 2),
    "1/4 by count": lambda total_bytes, models: CacheLimits(total_bytes, models // 4),
}
"""Room for a part of the fleet, by bytes or by `max_models`, which is then what binds."""
SIZES = ((0.50, 2.6e6), (0.25, 9.4e6), (0.15, 20.1e6), (0.07, 25.3e6), (0.03, 56.9e6))
"""Share of the fleet and parameters: n, s, m, l and x."""
DISK_BYTES_PER_S = 0.5e9
READY_S = 0.008  # what a load takes beyond its bytes
FLASH_S = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Who is asked for: `rate of model i ~ i^-alpha`, each with Gamma arrivals of `cv`.

    shift: whether all popularities are dealt anew in the middle of the trace
    flash: whether a model that nobody wanted gets every second request, from the middle on
    """

    name: str
    models: int
    alpha: float
    cv: float
    shift: bool = False
    flash: bool = False


WORKLOADS = (
    Workload("W1", 64, 0.5, 1),
    Workload("W2", 256, 1.0, 4),
    Workload("W2, popularity shifts", 256, 1.0, 4, shift=True),
    Workload("W3", 256, 0.0, 1),
    Workload("W4, flash crowd", 64, 1.5, 8, flash=True),
)


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model: bytes of its weights, seconds of its first and of every later load."""

    own_bytes: int
    first_s: float
    reload_s: float


Fleet = Mapping[ModelKey, FleetModel]
Trace = Sequence[ModelKey]


@dataclass(slots=True)
class Tally:
    """What was asked for and what had to be loaded for it."""

    requests: int = 0
    misses: int = 0
    asked_bytes: int = 0
    missed_bytes: int = 0
    missed_s: float = 0.0

    @property
    def miss_ratio(self) -> float:
        """Misses per request."""
        return self.misses / self.requests

    @property
    def byte_miss_ratio(self) -> float:
        """Bytes loaded per byte asked for."""
        return self.missed_bytes / self.asked_bytes

    @property
    def cost(self) -> float:
        """Seconds of loading per 1,000 requests."""
        return 1000 * self.missed_s / self.requests


# --- fleets and traces ------------------------------------------------------------------------


def make_fleet(count: int, rng: random.Random) -> dict[ModelKey, FleetModel]:
    """Return `count` prepared models whose sizes are dealt at random, in the usual shares."""
    sizes = [
        int(2 * parameters) for share, parameters in SIZES for _ in range(round(share * count))
    ]
    sizes = (sizes + [int(2 * SIZES[0][1])] * count)[:count]
    rng.shuffle(sizes)
    costs = [READY_S + size / DISK_BYTES_PER_S for size in sizes]
    return {
        ModelKey(f"m{i:03}", "1"): FleetModel(size, cost, cost)
        for i, (size, cost) in enumerate(zip(sizes, costs, strict=True))
    }


def slow_sources(fleet: Fleet, rng: random.Random) -> dict[ModelKey, FleetModel]:
    """Return `fleet` with one model in ten fetched from an object store each time: 0.5 to 2 s."""
    slow = dict(fleet)
    for key in rng.sample(sorted(fleet), len(fleet) // 10):
        seconds = rng.uniform(0.5, 2.0)
        slow[key] = FleetModel(fleet[key].own_bytes, seconds, seconds)
    return slow


def plain_first(fleet: Fleet) -> dict[ModelKey, FleetModel]:
    """Return `fleet` with 0.4 s more for the first load of each model, before it is prepared."""
    return {key: replace(model, first_s=model.first_s + 0.4) for key, model in fleet.items()}


COSTS: Mapping[str, Callable[[Fleet, random.Random], Fleet]] = {
    "All prepared on the local disk": lambda fleet, _: fleet,
    "One model in ten is fetched each time (0.5 to 2 s)": slow_sources,
    "First load of each model 0.4 s slower": lambda fleet, _: plain_first(fleet),
}


def make_trace(workload: Workload, fleet: Fleet, rng: random.Random) -> Trace:
    """Return `REQUESTS` keys in the order of their arrival."""
    ranked = list(fleet)
    rng.shuffle(ranked)
    half = REQUESTS // 2
    cold = ranked.pop() if workload.flash else None
    first = _arrivals(workload, ranked, half, rng)
    if workload.shift:
        rng.shuffle(ranked)
    second = _arrivals(workload, ranked, REQUESTS - half, rng)
    if cold is not None:
        second = [cold if rng.random() < 0.5 else key for key in second]
    return first + second


def _arrivals(
    workload: Workload, ranked: Sequence[ModelKey], count: int, rng: random.Random
) -> list[ModelKey]:
    """Merge one renewal process per model, the most popular first in `ranked`."""
    shape = workload.cv**-2

    def times(rank: int) -> Iterator[tuple[float, int]]:
        mean = rank**workload.alpha
        at = rng.random() * mean
        while True:
            yield at, rank
            at += rng.gammavariate(shape, mean / shape)

    merged = heapq.merge(*(times(rank) for rank in range(1, len(ranked) + 1)))
    return [ranked[rank - 1] for (_, rank), _ in zip(merged, range(count), strict=False)]


# --- references -------------------------------------------------------------------------------


class LFU:
    """The model with the fewest leases ever goes first: no ageing, no sizes, no costs."""

    def __init__(self) -> None:
        self._counts: defaultdict[ModelKey, int] = defaultdict(int)

    def used(self, key: ModelKey) -> None:
        """Count it."""
        self._counts[key] += 1

    def evicted(self, usage: Usage) -> None:
        """Do nothing."""

    def order(self, candidates: Sequence[Usage]) -> Sequence[Usage]:
        """Return all `candidates`, the least used first."""
        return sorted(candidates, key=lambda usage: (self._counts[usage.key], usage.last_used))


class Clairvoyant:
    """Knows the trace: the model whose next lease is farthest, for its size and cost, goes first.

    Not a proven bound (with sizes and costs the optimum is NP-hard), but far ahead of what can
    be had without knowing the future.
    """

    def __init__(self, trace: Trace) -> None:
        self._uses: defaultdict[ModelKey, list[int]] = defaultdict(list)
        for position, key in enumerate(trace):
            self._uses[key].append(position)
        self._end = 2 * len(trace)
        self._now = -1

    def used(self, key: ModelKey) -> None:
        """Go on by one request."""
        self._now += 1

    def evicted(self, usage: Usage) -> None:
        """Do nothing."""

    def order(self, candidates: Sequence[Usage]) -> Sequence[Usage]:
        """Return all `candidates`, the least cost per byte and request until then first."""
        return sorted(candidates, key=self._worth)

    def _worth(self, usage: Usage) -> float:
        uses = self._uses[usage.key]
        later = bisect.bisect_right(uses, self._now)
        away = (uses[later] if later < len(uses) else self._end) - self._now
        if later == len(uses):
            return 0.0
        return usage.reload_s / usage.charged_bytes / away


POLICIES: Mapping[str, Callable[[Trace], Policy]] = {
    "LRU": lambda _: LRU(),
    "LFU": lambda _: LFU(),
    "GDSF": lambda _: GDSF(),
    "clairvoyant": Clairvoyant,
}


# --- the simulation ---------------------------------------------------------------------------


def simulate(policy: Policy, fleet: Fleet, trace: Trace, limits: CacheLimits) -> Tally:
    """Replay `trace`, each lease ending before the next begins; count after the warm-up."""
    tally, ledger = Tally(), ByteLedger()
    resident: dict[ModelKey, Usage] = {}
    loaded: set[ModelKey] = set()
    for now, key in enumerate(trace):
        model = fleet[key]
        seconds = model.reload_s if key in loaded else model.first_s
        policy.used(key)
        missed = key not in resident
        if missed:
            need = Footprint(model.own_bytes)
            ranked = [usage.key for usage in policy.order(list(resident.values()))]
            admission = admit(key, need, ledger, ranked, limits)
            if admission.verdict is Verdict.FITS:
                for victim in admission.victims:
                    policy.evicted(resident.pop(victim))
                    ledger.remove(victim)
                ledger.add(key, need)
                charge = limits.charge(model.own_bytes)  # as CacheState does
                resident[key] = Usage(key, charge, seconds, float(now), 1)
            loaded.add(key)
        else:
            before = resident[key]
            resident[key] = replace(before, last_used=float(now), uses=before.uses + 1)
        if now >= WARM_UP * len(trace):
            tally.requests += 1
            tally.asked_bytes += model.own_bytes
            tally.misses += missed
            tally.missed_bytes += missed * model.own_bytes
            tally.missed_s += missed * seconds
    return tally


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a table: what the policies cost there, over all seeds."""

    costs: str
    workload: Workload
    room: str


def measure(cell: Cell) -> dict[str, tuple[float, float, float]]:
    """Return the cost, the miss ratio and the byte miss ratio of each policy, mean over seeds."""
    tallies = defaultdict(list)
    for seed in SEEDS:
        rng = random.Random(seed)  # noqa: S311 - a trace is no secret
        fleet = COSTS[cell.costs](make_fleet(cell.workload.models, rng), rng)
        trace = make_trace(cell.workload, fleet, rng)
        total_bytes = sum(model.own_bytes for model in fleet.values())
        limits = ROOMS[cell.room](total_bytes, len(fleet))
        for name, make in POLICIES.items():
            tallies[name].append(simulate(make(trace), fleet, trace, limits))
    return {
        name: (
            fmean(tally.cost for tally in some),
            fmean(tally.miss_ratio for tally in some),
            fmean(tally.byte_miss_ratio for tally in some),
        )
        for name, some in tallies.items()
    }


# --- the report -------------------------------------------------------------------------------

INTRODUCTION = f"""# Eviction policies by miss cost

Written by `python -m benchmarks.eviction docs/benchmarks/eviction.md`, about a minute of processor
time. This is a simulation: the policies and the admission are the cache's own, the seconds of a
load are not measured but {READY_S * 1000:.0f} ms and the model's bytes at
{DISK_BYTES_PER_S / 1e9:g} GB/s, unless the table says otherwise, so the figures do not depend on
the machine. {REQUESTS:,} requests in each trace, the first {WARM_UP:.0%} not counted, mean of
{len(SEEDS)} seeds; leases do not overlap.

*cost*: seconds of loading per 1,000 requests. *misses*: per request. *bytes*: loaded per byte
asked for. LFU does not age. *clairvoyant* knows the trace and evicts by cost per byte and distance
to the next use: what knowing the future would give, not a proven bound.
"""
HEADER = (
    "| workload | room | cost: LRU | LFU | GDSF | clairvoyant | GDSF / LRU "
    "| misses: LRU | GDSF | bytes: LRU | GDSF |\n" + "|---|---" + "|---:" * 9 + "|"
)


def report() -> str:
    """Return the tables and what follows from them, as Markdown."""
    cells = [Cell(costs, load, room) for costs in COSTS for load in WORKLOADS for room in ROOMS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(cells, pool.map(measure, cells), strict=True))
    ratios = {cell: got["GDSF"][0] / got["LRU"][0] for cell, got in results.items()}
    parts = [INTRODUCTION, _conclusion(ratios)]
    for costs in COSTS:
        rows = [
            _row(cell, got, ratios[cell]) for cell, got in results.items() if cell.costs == costs
        ]
        parts.append("\n".join([f"## {costs}\n", HEADER, *rows]) + "\n")
    return "\n".join(parts)


def _conclusion(ratios: Mapping[Cell, float]) -> str:
    lines = [
        "Cost of GDSF over that of LRU:\n",
        "| | mean | best | worst |",
        "|---|---:|---:|---:|",
    ]
    for costs in COSTS:
        some = [ratio for cell, ratio in ratios.items() if cell.costs == costs]
        mean = geometric_mean(some)
        lines.append(f"| {costs} | {mean:.2f} | {min(some):.2f} | {max(some):.2f} |")
    mean, worst = geometric_mean(ratios.values()), max(ratios, key=lambda cell: ratios[cell])
    better = "GDSF" if mean < 1 else "LRU"
    lines.append(
        f"\nOver all rows GDSF costs {mean:.2f} x what LRU does, so **{better} is the default**.\n"
        f"Where it is worst ({worst.workload.name}, room {worst.room}, {worst.costs.lower()}) it "
        f"costs {ratios[worst]:.2f} x.\n"
    )
    return "\n".join(lines)


def _row(cell: Cell, got: Mapping[str, tuple[float, float, float]], ratio: float) -> str:
    costs = " | ".join(f"{got[name][0]:.1f}" for name in POLICIES)
    misses = " | ".join(f"{got[name][i]:.1%}" for i in (1, 2) for name in ("LRU", "GDSF"))
    return f"| {cell.workload.name} | {cell.room} | {costs} | {ratio:.2f} | {misses} |"


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where to write the tables")
    file = parser.parse_args().file
    text = report()
    if file is None:
        print(text)
    else:
        file.write_text(text)


if __name__ == "__main__":
    main()
