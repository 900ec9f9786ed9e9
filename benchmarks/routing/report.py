"""The figures as Markdown: what was simulated, whether the targets are met, every row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.eviction import DISK_BYTES_PER_S, READY_S, WARM_UP
from benchmarks.routing.replica import FETCH_BYTES_PER_S, FETCH_S
from benchmarks.routing.results import Figures, Run, mean
from benchmarks.routing.simulator import (
    CONTROL_S,
    LATELY_S,
    OURS,
    PREPARED,
    RARE,
    STATS_DELAY_S,
    STATS_S,
    STOCK,
    STOCK_ROUTER,
)
from benchmarks.routing.workload import SERVICE_S, Cell, Scale

KEPT = "## On three nodes"
"""From this heading on the file is written by others and kept."""
MOST_MISSES, MOST_DECISION_US = 0.5, 50.0

_TIMES = ", ".join(f"{1000 * seconds:.0f}" for seconds in SERVICE_S)


def _introduction(scale: Scale, seeds: Sequence[int]) -> str:
    return f"""# Routers in a simulation

Written by `python -m benchmarks.routing docs/benchmarks/routing.md`, about five minutes of
processor time. No cluster: {scale.replicas} replicas on {scale.nodes} nodes, {scale.models:,}
models and {scale.ingresses} ingresses in virtual time, so only the last column depends on the
machine. Our router is `serve_app.routing.fleet_view` itself; eviction, admission, ledger and the
engine's queue are the replicas' own modules. Stock is `PowerOfTwoChoicesRequestRouter` with
`MultiplexMixin` of Ray 2.60, rule by rule (a contract test compares them). Both run inside the
same model of Serve's routing tasks, queue length cache, rejection and backoff.

- *requests*: sizes n/s/m/l/x of 50/25/15/7/3 %, {_TIMES} ms each on the engine, one at
  a time: assumed for a small GPU, not measured.
  W2: Zipf 1.0, CV 4. W4: Zipf 1.5, CV 8, and in the middle a cold model of size s goes from 0 to
  half of all requests in a second. Each model's arrivals are a Gamma renewal process of their own;
  in the rows *one stream* it is all arrivals together that are one, which is far less bursty for
  any one model. {scale.requests:,} requests, the first {WARM_UP:.0%} not counted; mean of
  {len(seeds)} seeds.
- *room*: all budgets together, of the bytes of all models. *load*: of what the replicas could do if
  every model were resident everywhere.
- *loads*: {READY_S * 1000:.0f} ms and the bytes at {DISK_BYTES_PER_S / 1e9:g} GB/s from prepared
  weights; before that {FETCH_S:g} s and the bytes at {FETCH_BYTES_PER_S / 1e6:.0f} MB/s where the
  node has none. {PREPARED:.0%} of the models are prepared on each node at the start, drawn at
  random. Weights that leave a device are not parked: such loads would be cheap, but more.
- *news*: ids at most every {OURS.push_s:g} s, statistics every {STATS_S:g} s and
  {STATS_DELAY_S:g} s late; the controller passes both on every {CONTROL_S:g} s.
- **{STOCK.name}**: as documented: LRU, one load at a time, {STOCK.max_ongoing} requests at a
  replica, ids every {STOCK.push_s:g} s; one seed, some cells. The budget is the same, and unlike
  Ray's wrapper it evicts nothing that is in use.
  **{STOCK_ROUTER.name}**: the same router over our replicas (GDSF, {OURS.max_loads} loads,
  {OURS.max_ongoing} requests): only the router differs, so this is what ours is compared with.
  For both of these a router learns the length of a queue with an answer, from when that request
  was accepted: requests travel by gRPC, as `make serve` sets it. By Ray's default, which
  *{STOCK.name}* has, it learns it at once.

*misses*: loads begun. *cold*: requests that waited for a load. *in time*: within 5 x the engine's
time. *copies*: mean and most of a model that is held. *doubled*: loads of a model that another
replica had or was loading, of all loads of models that are rare then: whose requests of the last
{LATELY_S:.0f} s took less than {RARE:.0%} of one replica. *balance*: work of the busiest replica
over the mean. *decision*: microseconds, median and 99th percentile.
"""


NOTES = """\
Where each model's requests come in bursts, stock's router loads a model in several places before
it sees the first load, and spills from full queues to replicas that load it anew (*doubled* below).
It is overloaded in those rows: its queues grow while the trace lasts, and a longer trace would show
longer latencies. In *one stream* both miss about equally often, so the target is not met there:
less is loaded twice, in W2 requests wait so long in stock's queues that many join one load (*cold*
less *misses*), and one cache would not halve stock's misses either.

Ours doubles some loads too: two routers choose in the same moment, a burst calls for a copy of a
model that is rare otherwise, or the replica that has it is full.
"""

CAUSES = """\
## Where ours misses

Loads of the first seed. *first*: models that nobody had loaded before, which no router avoids.
*copies*: another replica had the model or was loading it. *again*: it had been evicted everywhere;
beside it what one cache loads again. What lies between the two is mostly time: bytes of
loads in progress and of further copies hold no other model, and of the few models of one replica
those in use cannot go, so another one must.

| workload | room | load | misses | first | copies | again | one cache: again |
|---|---:|---:|---:|---:|---:|---:|---:|"""

HEADER = (
    "| workload | room | load | router | requests | misses | of stock's | cold | p50 ms | p99 ms "
    "| of stock's | in time | copies | doubled | evictions | balance | decision |\n"
    "|---|---:|---:|---" + "|---:" * 13 + "|"
)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ours over stock's router in one cell; the worst of all seeds.

    stock: misses per request of the latter, for the first seed
    """

    misses: float
    p99: float
    stock: float


def ratios(results: Mapping[Run, Figures], cell: Cell) -> Ratios:
    """Compare the two routers over the same replicas."""
    ours = {run.seed: got for run, got in results.items() if _is(run, cell, OURS.name)}
    stock = {run.seed: got for run, got in results.items() if _is(run, cell, STOCK_ROUTER.name)}
    return Ratios(
        max(ours[seed].misses / stock[seed].misses for seed in ours),
        max(ours[seed].p99_s / stock[seed].p99_s for seed in ours),
        stock[min(stock)].miss_ratio,
    )


def report(results: Mapping[Run, Figures], floors: Mapping[Cell, float]) -> str:
    """Return everything above `KEPT`.

    Args:
        results: at least one seed of ours and of stock's router for each cell
        floors: misses per request of one cache with all budgets, for the first seed
    """
    runs = list(results)
    seeds = sorted({run.seed for run in runs})
    cells = list(dict.fromkeys(run.cell for run in runs))
    rows = [row for cell in cells for row in _rows(results, cell)]
    causes = [CAUSES, *(_cause(results, cell, floor) for cell, floor in floors.items()), ""]
    parts = [_introduction(runs[0].scale, seeds), _conclusion(results, floors), *causes]
    return "\n".join([*parts, "## Every row\n", HEADER, *rows]) + "\n"


def rewritten(before: str, text: str) -> str:
    """Return the file with `text` for what was written here, and what others added kept."""
    _, heading, kept = before.partition(f"\n{KEPT}")
    return text + heading + kept


def _is(run: Run, cell: Cell, system: str) -> bool:
    return run.cell == cell and run.system == system


def _conclusion(results: Mapping[Run, Figures], floors: Mapping[Cell, float]) -> str:
    lines = [
        "## Ours over stock's router\n",
        "Only the router differs. The worst seed of each; asked: misses at most "
        f"{MOST_MISSES:g} x, p99 lower,\ndecisions under {MOST_DECISION_US:.0f} us at the median. "
        "*one cache*: misses of a single cache with all budgets and\nthe same eviction policy, "
        "without copies and without time for a load, also over stock's (first seed):\na yardstick "
        "for what placing models can bring.\n",
        "| workload | room | load | misses | one cache | p99 | decision, median | met |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for cell, floor in floors.items():
        got = ratios(results, cell)
        decision = max(one.decision_us for run, one in results.items() if _is(run, cell, OURS.name))
        met = got.misses <= MOST_MISSES and got.p99 < 1 and decision < MOST_DECISION_US
        lines.append(
            f"| {_place(cell)} | {got.misses:.2f} x | {floor / got.stock:.2f} x "
            f"| {got.p99:.2f} x | {decision:.0f} us | {'yes' if met else '**no**'} |"
        )
    return "\n".join([*lines, "", NOTES])


def _cause(results: Mapping[Run, Figures], cell: Cell, floor: float) -> str:
    ours = {run.seed: got for run, got in results.items() if _is(run, cell, OURS.name)}
    got = ours[min(ours)]
    again = got.misses - got.first - got.copied
    # Whatever the router, what is asked for the first time must be loaded.
    cached = max(0.0, floor * got.requests - got.first)
    return (
        f"| {_place(cell)} | {got.misses:,.0f} | {got.first:,.0f} | {got.copied:,.0f} "
        f"| {again:,.0f} | {cached:,.0f} |"
    )


def _rows(results: Mapping[Run, Figures], cell: Cell) -> list[str]:
    names = list(dict.fromkeys(run.system for run in results if run.cell == cell))
    means = {
        name: mean([got for run, got in results.items() if _is(run, cell, name)]) for name in names
    }
    stock = means[STOCK_ROUTER.name]
    return [_row(cell, name, got, stock) for name, got in means.items()]


def _row(cell: Cell, name: str, got: Figures, stock: Figures) -> str:
    return (
        f"| {_place(cell)} | {name} | {got.requests:,.0f} "
        f"| {got.misses:,.0f} ({got.miss_ratio:.1%}) "
        f"| {got.misses / stock.misses:.2f} x | {got.cold:.1%} | {1000 * got.p50_s:,.0f} "
        f"| {1000 * got.p99_s:,.0f} | {got.p99_s / stock.p99_s:.2f} x | {got.in_time:.1%} "
        f"| {got.copies:.2f}, {got.most_copies:.0f} | {got.doubled:.1%} | {got.evictions:,.0f} "
        f"| {got.balance:.2f} | {got.decision_us:.0f}, {got.slow_decision_us:.0f} |"
    )


def _place(cell: Cell) -> str:
    name = cell.workload.name if cell.apart else f"{cell.workload.name}, one stream"
    return f"{name} | {cell.room:.0%} | {cell.load:.0%}"
