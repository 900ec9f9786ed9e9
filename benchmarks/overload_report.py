"""The table and the text of docs/benchmarks/overload.md. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.records import OK, Run, median, percentile
from benchmarks.report import table

Json = Mapping[str, Any]

REFUSED = 503
_HEADER = (
    "`max_wait_s`",
    "load",
    "offered/s",
    "answered/s",
    "refused",
    "other",
    "p50, s",
    "p99, s",
    "slowest, s",
    "`Retry-After`, s",
    "first refusal after, s",
    "refusal p50, ms",
    "next request, ms",
)


def summary(run: Run) -> dict[str, Any]:
    """Return the figures of one open loop; times in seconds, None where there are none."""
    refused = [record for record in run.records if record.status == REFUSED]
    waits = [record.retry_after_s for record in refused if record.retry_after_s is not None]
    accepted = run.latencies_s
    return {
        "offered": len(run.records) / run.limit_s,
        "answered": run.rate,
        "requests": len(run.records),
        "refused": len(refused),
        "other": sum(record.status not in (OK, REFUSED) for record in run.records),
        "p50_s": median(accepted) if accepted else None,
        "p99_s": percentile(accepted, 99) if accepted else None,
        "worst_s": max(accepted, default=None),
        "retry_after_s": [min(waits), median(waits), max(waits)] if waits else None,
        "without_retry_after": len(refused) - len(waits),
        "first_refused_s": min((record.scheduled_s for record in refused), default=None),
        "refusal_p50_s": median([r.done_s - r.sent_s for r in refused]) if refused else None,
        "client_cores": run.client_cpu_s / run.elapsed_s if run.elapsed_s else 0.0,
    }


def compose(results: Sequence[Json], scale: Json) -> str:
    """Return the report as markdown.

    results: with the bound, and without
    scale: how it was measured, by the names of `benchmarks.overload`
    """
    rows = (_row(result, load, scale) for result in results for load in result["loads"])
    lines = [*_head(results, scale), *table(_HEADER, rows), *_explained(results)]
    return "\n".join(lines).rstrip() + "\n"


def _head(results: Sequence[Json], scale: Json) -> Iterator[str]:
    machine = results[-1]["machine"]
    yield "# Overload"
    yield ""
    yield "Written by `python -m benchmarks.overload --report docs/benchmarks/overload.md`, about"
    yield "three minutes for each of two servers."
    yield ""
    yield f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, load average just after"
    yield (
        f"the second {machine['load']:.1f}: whatever else the machine did is in the figures. "
        f"Ray {machine['versions']['ray']}."
    )
    yield ""
    yield "Each server is started by `python -m serve_app` with its defaults, one with `max_wait_s`"
    yield f"as it is by default ({scale['max_wait_s']:g} s), one with `null`, where only the number"
    yield "of calls bounds the queue (64 in the detector and 256 before it). They serve one"
    yield f"n-model at 640 px; the picture is a JPEG of {scale['image_bytes'] / 1024:.0f} KiB."
    yield ""
    yield f"Its capacity is what {scale['clients']} clients got in {scale['capacity_s']:g} s, each"
    yield "waiting for its answer. Then requests arrive at random, whoever still waits, for"
    yield f"{scale['load_s']:g} s at multiples of that. Nobody tries again. All requests count,"
    yield "also those of the first seconds, when the queue fills. The load generator takes its part"
    yield "of the same cores."
    yield ""
    for result in results:
        yield (
            f"- `{_bound(result, scale)}`: {result['capacity']:.1f} answers/s; alone, a request "
            f"takes {1000 * result['idle_p50_s']:.0f} ms (median of {scale['idle']})."
        )
    yield ""
    yield "*p50, p99, slowest*: of the requests that were answered, from their arrival."
    yield "*Retry-After*: median (least to most). *refusal*: from sending the request, picture"
    yield "included, to the 503. *next request*: one alone, once all of the load have ended."
    yield ""


def _bound(result: Json, scale: Json) -> str:
    return f"{scale['max_wait_s']:g}" if result["bound"] == "default" else "null"


def _row(result: Json, load: Json, scale: Json) -> Sequence[str]:
    retry = load["retry_after_s"]
    return (
        _bound(result, scale),
        f"{load['factor']:g} x",
        f"{load['offered']:.1f}",
        f"{load['answered']:.1f}",
        f"{load['refused'] / load['requests']:.0%}",
        str(load["other"]),
        _number(load["p50_s"]),
        _number(load["p99_s"]),
        _number(load["worst_s"]),
        "-" if retry is None else f"{retry[1]:.0f} ({retry[0]:.0f} to {retry[2]:.0f})",
        _number(load["first_refused_s"]),
        _number(load["refusal_p50_s"], 1000),
        _number(load["after_s"], 1000),
    )


def _number(value: float | None, factor: float = 1) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if factor == 1 else f"{factor * value:.0f}"


def _explained(results: Sequence[Json]) -> Iterator[str]:
    loads = [load for result in results for load in result["loads"]]
    most = max(load["client_cores"] for load in loads)
    silent = sum(load["without_retry_after"] for load in loads)
    yield f"The load generator took up to {most:.2f} of a core. Refusing takes some as well; why"
    yield "less is answered under overload than by the closed loop was not taken apart."
    yield f"Refusals without `Retry-After`: {silent}. *other*: neither 200 nor 503."
    yield ""
    yield "What this does not show: several models, several replicas, clients that come again."
    yield "Those are simulated in `tests/unit/ingress/test_overload_control.py`."
