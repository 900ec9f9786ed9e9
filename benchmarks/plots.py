"""Draws the pictures of the report."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import plan
from benchmarks.results import Pass, Results

COLOURS: Mapping[str, str] = {
    plan.AUTO: "#0072b2",
    plan.FP32: "#56b4e9",
    plan.ALL: "#009e73",
    plan.BUDGET: "#44aa99",
    plan.STOCK: "#d55e00",
    plan.DOCUMENTED: "#cc79a7",
    plan.ARTICLE: "#e69f00",
}
LABELS: Mapping[str, str] = {
    plan.AUTO: "serve_app (auto)",
    plan.FP32: "serve_app (fp32)",
    plan.ALL: "serve_app, all resident",
    plan.BUDGET: "serve_app, stock's bytes",
    plan.STOCK: "Ray Serve's multiplexing, tuned",
    plan.DOCUMENTED: "Ray Serve's multiplexing",
    plan.ARTICLE: "FastAPI + LRU manager",
}
_SHARED_BY = {plan.TURN_AUTO: plan.AUTO, plan.TURN_FP32: plan.FP32, plan.TURN_STOCK: plan.STOCK}
_STYLE: Any = {
    "figure.figsize": (7.2, 4.0),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def draw_all(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every picture whose measurements are there; return the files by their names."""
    drawings: dict[str, Callable[[Results, Axes], bool]] = {
        "requests": requests,
        "latency": latency,
        "memory": memory,
        "goodput": goodput,
    }
    files = {}
    with mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure, axes = plt.subplots()
            if draw(results, axes):
                files[name] = folder / f"{name}.png"
                figure.savefig(files[name])
            plt.close(figure)
    return files


def requests(results: Results, axes: Axes) -> bool:
    """Draw requests per second of each server, on one hot model and on 24."""
    steps = ("hot8", "zipf")
    servers = [s for s in LABELS if any(results.first.run(s, step) for step in steps)]
    if not servers:
        return False
    height = 0.38
    for offset, step in enumerate(steps):
        for row, server in enumerate(servers):
            run = results.first.run(server, step)
            if run is not None:
                place = row + (offset - 0.5) * height
                bars = axes.barh(
                    place, run.rate, height * 0.92, color=COLOURS[server], alpha=1 - 0.45 * offset
                )
                axes.bar_label(bars, [f"{run.rate:.1f}"], padding=4, fontsize=8)
    axes.set_yticks(range(len(servers)), [LABELS[server] for server in servers])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("requests per second (room for 6 models, unless all are resident)")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    axes.set_title(
        "dark: one hot model, 8 clients;  light: 24 models, Zipf 1.0, 4 clients", fontsize=9
    )
    return True


def latency(results: Results, axes: Axes) -> bool:
    """Draw the latencies of each server on the same trace as cumulated shares."""
    for server, label in LABELS.items():
        run = results.first.run(server, "zipf")
        if run is not None and run.ok:
            values = np.sort(run.latencies_s) * 1000
            shares = np.arange(1, len(values) + 1) / len(values)
            axes.step(values, shares, where="post", color=COLOURS[server], label=label)
    if not axes.lines:
        return False
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency in ms, 24 models, Zipf 1.0, 4 clients")
    axes.set_ylabel("share of the requests")
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return True


def memory(results: Results, axes: Axes) -> bool:
    """Draw the memory of the process that holds the models, while 12 are asked for in turn."""
    for server, shared in _SHARED_BY.items():
        data = results.first.data(server, "turn")
        if data is not None:
            times = [sample[0] for sample in data["memory"]]
            held = [(sample[1] - data["empty"]["rss"]) / 2**20 for sample in data["memory"]]
            label = f"{LABELS[shared]}, room for {plan.TURN_ROOM}"
            axes.plot(times, held, color=COLOURS[shared], label=label, marker=".")
    if not axes.lines:
        return False
    for text, whole, colour in _residents(results.first):
        axes.axhline(whole / 2**20, color=colour, linestyle="--", label=text)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_xlabel("seconds, 12 models in turn, 1 client, after a first round")
    axes.set_ylabel("growth of resident memory in MiB")
    _legend(axes)
    return True


def goodput(results: Results, axes: Axes) -> bool:
    """Draw answers in time against the offered load, for the bursty workload W2."""
    if results.slo is None:
        return False
    slo_s, _ = results.slo
    limit = 0.0
    for server in (plan.AUTO, plan.STOCK):
        points = sorted(_loads(results.first, server), key=itemgetter(0))
        if points:
            rates = [rate for rate, _ in points]
            limit = max(limit, 1.05 * rates[-1])
            good = [run.goodput(slo_s) for _, run in points]
            axes.plot(rates, good, color=COLOURS[server], label=LABELS[server], marker="o")
    if not axes.lines:
        return False
    axes.plot([0, limit], [0, limit], color="#888888", linestyle=":", label="all in time")
    axes.set_xlim(0, limit)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests offered per second (W2: Zipf 1.0, bursts of CV 4)")
    axes.set_ylabel(f"answers within {slo_s * 1000:.0f} ms per second")
    _legend(axes)
    return True


def _legend(axes: Axes) -> None:
    """Put the legend above the plot, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8)


def _loads(one: Pass, server: str) -> list[tuple[float, Any]]:
    """Return the offered rates at which the workload W2 was played, each with its run."""
    found = [(entry["rate"], key) for key, entry in (one.data(server, "loads") or {}).items()]
    points = [(rate, one.run(server, "loads", key)) for rate, key in found]
    whole = one.data(server, "open")
    if whole is not None and "W2" in whole:
        points.append((whole["W2"]["rate"], one.run(server, "open", "W2")))
    return points


def _residents(one: Pass) -> list[tuple[str, float, str]]:
    found = []
    plain = one.data(plan.PLAIN, "measure")
    if plain is not None:
        grown = plain[-1]["rss"] - plain[0]["rss"]
        found.append((f"{plan.TURN_MODELS} x YOLO(path) resident", grown, "#888888"))
    if (ours := one.grown(plan.ALL)) is not None:
        found.append((f"serve_app, {plan.TURN_MODELS} resident", ours.whole, COLOURS[plan.ALL]))
    return found
