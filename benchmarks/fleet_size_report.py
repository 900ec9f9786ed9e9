"""The table and the text of docs/benchmarks/fleet_size.md. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.machine import Machine
from benchmarks.report import table

MIB = 2**20
Json = Mapping[str, Any]

_SECONDS: Mapping[str, str] = {
    "ready_s": "start of `python -m serve_app` until ready, s",
    "first_s": "the very first request, a cold model, s",
    "cold_s": "first request of a further model right after the start, median of {cold}, ms",
    "asked_s": "{asked} requests in turn, each for another model where there are so many, mean, ms",
    "new_model_s": "first request for a model put there a moment ago, median of {new}, ms",
    "slowest_new_model_s": "the slowest of these {new}, ms",
    "after_pause_s": "a resident model after {pause:g} s without a request, ms",
    "page_s": "`GET /v1/models`, 100 from the middle, ms",
    "largest_page_s": "`GET /v1/models?limit=1000`, ms",
    "show_s": "`GET /v1/models/{{ref}}`, ms",
    "unknown_s": "an unknown name (404), ms",
}
_MEMORY: Mapping[str, str] = {
    "memory": "after the hot load",
    "memory_asked": "after {asked} models in turn",
    "memory_unknown": "after {unknown:,} unknown names",
}


def compose(results: Sequence[Json], machine: Machine, scale: Mapping[str, float]) -> str:
    """Return the report as markdown.

    results: of the sizes, the smaller first
    scale: how often what was done, by the names that the rows use
    """
    small, large = results
    header = ("", *(f"{result['count']:,} models" for result in results), "ratio")
    rows = (tuple(cells) for cells in _rows(small, large, scale))
    return (
        "\n".join([*_head(machine, scale), *table(header, rows), *_explained(large, scale)]) + "\n"
    )


def _head(machine: Machine, scale: Mapping[str, float]) -> Iterator[str]:
    yield "# 10 models and 10,000"
    yield ""
    yield "Written by `python -m benchmarks.fleet_size --report docs/benchmarks/fleet_size.md`."
    yield f"{machine.date}, {machine.cpu}, {machine.cores} cores, Ray {machine.versions['ray']}."
    yield ""
    yield "Two servers, one after the other, each started by `python -m serve_app` on an empty"
    yield f"cache with a budget of {scale['budget_mib']:g} MiB. Every model has a folder, a card"
    yield "and a file of its own name: hard links to one checkpoint of 5.5 MB. So the page cache"
    yield "holds all of them, and the preparer only hashes all but the first; with distinct files"
    yield "a first request also reads the disk, and each file is converted as well."
    yield "One run each, and whatever else the machine does is in them (load average before the"
    yield f"report: {machine.load:.1f}): differences of a third mean nothing."
    yield ""


def _rows(small: Json, large: Json, scale: Mapping[str, float]) -> Iterator[Sequence[str]]:
    for key, what in _SECONDS.items():
        in_ms = what.endswith("ms")
        yield _row(what.format(**scale), small[key], large[key], _ms if in_ms else _s)
    yield _row("requests/s, one hot model, 4 clients", small["hot_rate"], large["hot_rate"], _rate)
    for key, when in _MEMORY.items():
        for role in ("ingress", "detector"):
            what = f"RSS of the {role}, {when.format(**scale)}, MiB"
            yield _row(what, small[key][role], large[key][role], _mib)
    for role in ("ingress", "detector", "Ray"):
        what = f"share of a core while idle: {role}, %"
        yield _row(what, small["idle_cores"][role], large["idle_cores"][role], _percent)
    parts = [result["registry"] for result in (small, large)]
    for key, (what, show) in _REGISTRY.items():
        yield _row(what, parts[0][key], parts[1][key], show)
    kept = [result["router"] for result in (small, large)]
    what = "router: kept of {ranked:,} requests over all ids, KiB".format(**scale)
    yield _row(what, kept[0]["kept_bytes"], kept[1]["kept_bytes"], _kib)
    yield _row("router: one decision, median, µs", kept[0]["rank_s"], kept[1]["rank_s"], _us)


def _settled(large: Json) -> Iterator[str]:
    ended = "had ended" if large["settled_s"] is not None else "was still at work"
    after = "" if large["settled_s"] is None else f", {large['settled_s']:.0f} s after them"
    yield "- The requests right after the start compete with the preparer, and what they take"
    yield "  depends on how far it is: a model opens in 60 ms once its weights are prepared, in"
    yield "  600 to 900 ms before that. It begins when a detector's first scan has ended, which"
    yield f"  takes longer where there are more models. At all other rows it {ended}{after}."


def _row(what: str, small: float, large: float, show: Callable[[float], str]) -> Sequence[str]:
    ratio = f"{large / small:.2f}" if small else "-"
    return what, show(small), show(large), ratio


def _s(value: float) -> str:
    return f"{value:.2f}"


def _ms(value: float) -> str:
    return f"{1000 * value:.1f}"


def _us(value: float) -> str:
    return f"{1e6 * value:.1f}"


def _rate(value: float) -> str:
    return f"{value:.1f}"


def _mib(value: float) -> str:
    return f"{value / MIB:.0f}"


def _kib(value: float) -> str:
    return f"{value / 1024:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


_REGISTRY: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "first_cpu_s": ("registry: first scan, ms of a core (ingress)", _ms),
    "without_cards_cpu_s": ("registry: first scan without cards, ms of a core (detector)", _ms),
    "scan_cpu_s": ("registry: each further scan, ms of a core", _ms),
    "look_s": ("registry: one name by itself, µs", _us),
    "kept_bytes": ("registry: memory of all models and cards, KiB", _kib),
}


def _explained(large: Json, scale: Mapping[str, float]) -> Iterator[str]:
    yield "What grows, and what that means:"
    yield ""
    yield "- **Models in turn**: 10 models stay in memory, of 10,000 each request loads one and"
    yield "  evicts another. It is no measure of the registry, but of loads."
    yield "- **A new model** is found in its own folder and put between those that are known, which"
    yield "  copies 10,000 references in the ingress and in the detector (3 ms each). Each was put"
    yield f"  there after {scale['new_pause']:g} s without a request and then one for another,"
    yield "  so that it meets a scan that this one began."
    yield "- **The registry** of each process, by the rows above; only the ingress reads cards."
    yield "- **The list** waits for the first scan, which begins with the ingress, and after a"
    yield "  pause for one more. Nothing else waits for a scan: an unknown name, a new version, and"
    yield "  any name after a pause are looked up in their own folders."
    yield "- **Scans** run in a thread, under requests only, and take at most a twentieth of the"
    yield "  time and a quarter of a core, in slices of 2 ms, unless a client waits for the list; a"
    yield "  detector scans once a minute. So a new version of a bare name that is asked"
    yield "  for all the time is served after 2 s, or after 20 times a scan's duration where that"
    yield "  is more."
    yield from _settled(large)
    yield "- **Preparing** happens at idle priority, in the order of the list, until"
    yield "  `prepared_bytes` are full (10 GiB hold about 2,000 models of this size). Models that"
    yield "  are opened go first, and then take the place of those that were unused longest."
    yield "- **The router** keeps the places of at most 4,096 ids and forgets within seconds what"
    yield f"  it sent: {scale['ranked']:,.0f} requests are the most that it was asked here."
