"""The table of targets: what was reached, against what, and whether that is enough. Pure."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks import plan
from benchmarks.records import Run, median, percentile
from benchmarks.results import MIB, Growth, Pass, Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One target.

    ours, other: what was compared, in words and units
    values: the figure that the target is about, once for each pass
    limit: what it should be at least, or at most; None for a yes-or-no target (1 is yes)
    """

    what: str
    ours: str
    other: str
    values: tuple[float, ...]
    limit: float | None
    at_least: bool = True
    unit: str = "x"

    @property
    def value(self) -> float:
        """The median over the passes."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Whether the target is reached; never without a figure."""
        if math.isnan(self.value):
            return False
        if self.limit is None:
            return min(self.values) >= 1
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def reached(self) -> str:
        """The figure in words, with its spread where there are several."""
        if self.limit is None:
            return "yes" if self.met else "no"
        text = f"{self.value:.3g} {self.unit}"
        if len(self.values) > 1:
            text += f" ({min(self.values):.3g} to {max(self.values):.3g})"
        return text

    @property
    def target(self) -> str:
        """What was asked for, in words."""
        if self.limit is None:
            return "holds"
        return f"at {'least' if self.at_least else 'most'} {self.limit:g} {self.unit}"


def rows(results: Results) -> list[Row]:
    """Return every target whose measurements are there."""
    groups: Iterable[Callable[[Results], list[Row]]] = (
        _hot,
        _fleet,
        _budget,
        _cold,
        _memory,
        _many,
        _storm,
        _lag,
    )
    found = [row for group in groups for row in group(results)]
    return [row for row in found if row.values]


def _hot(results: Results) -> list[Row]:
    found = []
    for server, bare in ((plan.AUTO, plan.BARE_AUTO), (plan.FP32, plan.BARE_FP32)):
        rate, loop_rate = _rate(server, "hot8"), _bare_rate(bare)
        found.append(
            Row(
                what=f"one hot model, 8 clients: images/s over the bare loop's ({_kind(server)})",
                ours=_say(results.each(rate), "/s"),
                other=_say(results.each(loop_rate), "/s"),
                values=_ratio(results, rate, loop_rate),
                limit=0.95,
            )
        )
        p50, loop_p50 = _latency(server, "hot1", 50), _bare_p50(bare)
        added = (1000 * (ours - loop) for ours, loop in _pairs(results, p50, loop_p50))
        found.append(
            Row(
                what=f"one hot model, 1 client: latency added to the bare loop's ({_kind(server)})",
                ours=_say(results.each(p50), " ms", 1000),
                other=_say(results.each(loop_p50), " ms", 1000),
                values=tuple(added),
                limit=6,
                at_least=False,
                unit="ms",
            )
        )
    return found


def _fleet(results: Results) -> list[Row]:
    everything = _rate(plan.ALL, "zipf")
    found = []
    for server, peer in itertools.product((plan.AUTO, plan.FP32), (plan.DOCUMENTED, plan.STOCK)):
        rate, p99 = _rate(server, "zipf"), _latency(server, "zipf", 99)
        stock, slowest = _rate(peer, "zipf"), _latency(peer, "zipf", 99)
        whose = "stock's" if peer == plan.DOCUMENTED else "tuned stock's"
        what = "24 models, room for 6, Zipf 1.0, 4 clients"
        found += [
            Row(
                what=f"{what}: requests/s over {whose} ({_kind(server)})",
                ours=_say(results.each(rate), "/s") + _refused(results, server),
                other=_say(results.each(stock), "/s") + _refused(results, peer),
                values=_ratio(results, rate, stock),
                limit=6,
            ),
            Row(
                what=f"{what}: p99 over {whose} ({_kind(server)})",
                ours=_say(results.each(p99), " ms", 1000),
                other=_say(results.each(slowest), " ms", 1000),
                values=_ratio(results, p99, slowest),
                limit=0.2,
                at_least=False,
            ),
        ]
    rate = _rate(plan.AUTO, "zipf")
    found.append(
        Row(
            what="the same: requests/s over those with all resident (auto)",
            ours=_say(results.each(rate), "/s"),
            other=_say(results.each(everything), "/s"),
            values=_ratio(results, rate, everything),
            limit=0.9,
        )
    )
    return found


def _budget(results: Results) -> list[Row]:
    run = results.first.run(plan.BUDGET, "zipf")
    grown = (results.first.data(plan.BUDGET, "prepare") or {}).get("grow")
    if run is None or grown is None:
        return []
    misses = sum(bool(record.cold) for record in run.records)
    budget = results.plain.get("budget_bytes", math.nan)
    stock, ours = results.first.grown(plan.STOCK), results.first.grown(plan.BUDGET)
    later = f", {6 * stock.each / MIB:.0f} MiB without what is taken once" if stock else ""
    return [
        Row(
            what="24 models in the bytes that stock needs for 6: all resident, no misses (auto)",
            ours=f"{grown['resident']} resident in {grown['used_bytes'] / MIB:.0f} MiB by the "
            f"ledger, {misses} misses in {len(run.records)}; the process grew by {ours}",
            other=f"budget {budget / MIB:.0f} MiB: stock's process grew by {stock}{later}",
            values=(float(grown["resident"] == plan.MODELS and misses == 0),),
            limit=None,
        )
    ]


def _cold(results: Results) -> list[Row]:
    found = []
    for server in (plan.TURN_AUTO, plan.TURN_FP32):
        ours, stock = _cold_p50(server), _cold_p50(plan.TURN_STOCK)
        found.append(
            Row(
                what="prepared model not resident: answer over stock's load and first predict "
                f"({_kind(server)}, median)",
                ours=_say(results.each(ours), " ms", 1000),
                other=_say(results.each(stock), " ms", 1000),
                values=_ratio(results, ours, stock),
                limit=0.25,
                at_least=False,
            )
        )
    return found


def _memory(results: Results) -> list[Row]:
    turned = results.first.data(plan.TURN_AUTO, "turn")
    if turned is None:
        return []
    grown = turned["growth"]
    peer = results.first.data(plan.TURN_STOCK, "turn")
    aside = f"; stock with room for 3: {_mib(peer['growth'])}" if peer else ""
    empty = turned["empty"]["rss"]
    plain = results.first.data(plan.PLAIN, "measure")
    resident = {
        "ours with all 12 resident": results.first.grown(plan.ALL),
        "12 x YOLO(path) in one process": plain and Growth([sample["rss"] for sample in plain]),
    }
    return [
        Row(
            what=f"12 models in turn, room for 3: growth of memory over {name} (auto)",
            ours=str(Growth([empty, empty + grown])),
            other=f"{whole}{aside}",
            values=(grown / whole.whole,),
            limit=0.4,
            at_least=False,
        )
        for name, whole in resident.items()
        if whole
    ]


def _many(results: Results) -> list[Row]:
    found = results.first.data(plan.MANY, "measure")
    if found is None:
        return []
    count, weights = found["models"], found["weights_bytes"]
    each = (found["rss"][-1] - found["rss"][0]) / count
    return [
        Row(
            what=f"{count} n-models resident in one process: bytes each over the weights (auto)",
            ours=f"{each / MIB:.2f} MiB",
            other=f"{weights / count / MIB:.2f} MiB of weights "
            f"({found['parameters'] / 1e6:.2f} M parameters)",
            values=(each * count / weights,),
            limit=1.3,
            at_least=False,
        )
    ]


def _storm(results: Results) -> list[Row]:
    run, stock = (results.first.run(server, "storm") for server in (plan.AUTO, plan.STOCK))
    if run is None or not run.ok:
        return []
    factor = max(run.latencies_s) / median(run.latencies_s)
    other = "not measured"
    if stock is not None and stock.ok:
        peer = max(stock.latencies_s) / median(stock.latencies_s)
        other = f"stock: {stock.rate:.1f}/s, longest {peer:.1f} x the median"
    return [
        Row(
            what="swap storm, uniform over 24, room for 6: no 5xx, none longer than 10 x the median"
            " (auto)",
            ours=f"{run.rate:.1f}/s, {run.server_errors} x 5xx, longest {factor:.1f} x the median "
            f"of {median(run.latencies_s) * 1000:.0f} ms",
            other=other,
            values=(float(run.server_errors == 0 and factor <= 10),),
            limit=None,
        )
    ]


def _lag(results: Results) -> list[Row]:
    found = results.first.data(plan.AUTO, "lag")
    if found is None:
        return []
    rows = []
    for path, probe in found["probes"].items():
        idle, busy = median(probe["unloaded_s"]), percentile(probe["loaded_s"], 99)
        loop = "ingress" if path.startswith("/health") else "ingress and replica"
        rows.append(
            Row(
                what=f"event loop of {loop} under load, seen from outside: GET {path}, p99 less "
                "its unloaded median (auto)",
                ours=f"{busy * 1000:.1f} ms",
                other=f"{idle * 1000:.1f} ms unloaded",
                values=(1000 * (busy - idle),),
                limit=20,
                at_least=False,
                unit="ms",
            )
        )
    for deployment, bound in found["p99_bound_s"].items():
        rows.append(
            Row(
                what=f"event loop of {deployment} under load, measured in it, p99 (auto)",
                ours=f"at most {bound * 1000:.0f} ms",
                other="",
                values=(1000 * bound,),
                limit=20,
                at_least=False,
                unit="ms",
            )
        )
    return rows


Figure = Callable[[Pass], float | None]


def _rate(server: str, step: str) -> Figure:
    return _of_run(server, step, lambda run: run.rate)


def _latency(server: str, step: str, percent: float) -> Figure:
    return _of_run(server, step, lambda run: percentile(run.latencies_s, percent))


def _cold_p50(server: str) -> Figure:
    return _of_run(server, "turn", lambda run: median(run.cold_s))


def _of_run(server: str, step: str, figure: Callable[[Run], float]) -> Figure:
    def find(one: Pass) -> float | None:
        run = one.run(server, step)
        return None if run is None or not run.ok else figure(run)

    return find


def _bare_rate(server: str) -> Figure:
    def find(one: Pass) -> float | None:
        latencies = one.bare(server)
        return None if latencies is None else len(latencies) / sum(latencies)

    return find


def _bare_p50(server: str) -> Figure:
    def find(one: Pass) -> float | None:
        latencies = one.bare(server)
        return None if latencies is None else median(latencies)

    return find


def _pairs(results: Results, first: Figure, second: Figure) -> list[tuple[float, float]]:
    both = ((first(one), second(one)) for one in results.passes)
    return [(a, b) for a, b in both if a is not None and b is not None]


def _ratio(results: Results, first: Figure, second: Figure) -> tuple[float, ...]:
    return tuple(a / b for a, b in _pairs(results, first, second) if b)


def _say(values: list[float], unit: str, factor: float = 1) -> str:
    return f"{median(values) * factor:.1f}{unit}" if values else "not measured"


def _refused(results: Results, server: str) -> str:
    """Say how many requests of the fleet's trace were not answered, where there are any."""
    runs = [one.run(server, "zipf") for one in results.passes]
    missing = sum(len(run.records) - len(run.ok) for run in runs if run is not None)
    return f", **{missing} not answered**" if missing else ""


def _mib(value: float | None) -> str:
    return "not measured" if value is None else f"{value / MIB:.0f} MiB"


def _kind(server: str) -> str:
    return "fp32" if server in {plan.FP32, plan.TURN_FP32} else "auto"
