"""What is done with one running server; each step returns plain values for results.json."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import lag, plan
from benchmarks.load import Probe, Target, play
from benchmarks.plan import Scale
from benchmarks.processes import Memory, Sampler, wait_until_idle
from benchmarks.records import Run
from benchmarks.serving import Server, ServerError
from benchmarks.workloads import (
    W1,
    W2,
    W3,
    W4,
    Arrival,
    Trace,
    Workload,
    closed_loop,
    in_turn,
    open_loop,
)

Json = dict[str, Any]
Step = Callable[["Context", Server], Json]

LOAD = 0.6
"""Of the capacity, that the open-loop workloads are offered at."""
PATIENCE_S = 10.0
"""How long a client of an open loop waits for its answer."""
MOST_PER_SECOND = 200
"""More than any server here answers: a closed loop's trace must not run out before its time."""
_UNLOADED_S = 3.0
_METRICS_DELAY_S = 12.0  # Ray's exporter is brought up to date every ten seconds
_LIVE, _REPLICAS = "/health/live", "/v1/replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every step needs to know.

    names: of the fleet, the most popular first
    image: the picture that is sent
    check_image: a picture on which the models find something
    capacity: requests per second of our server on one hot model, None while unknown
    """

    scale: Scale
    names: tuple[str, ...]
    image: Path
    check_image: Path
    capacity: float | None = None


def prepare(context: Context, server: Server, steps: tuple[str, ...]) -> Json:
    """Bring a server to the state in which it is asked; return what it showed on the way."""
    seen: Json = {"settled_s": wait_until_idle(server.pid), "empty": asdict(server.memory())}
    if "grow" in steps:
        seen["grow"] = grow(context, server)
    if set(steps) - {"grow", "turn"}:
        play(in_turn(plan.MODELS, 1, 120.0), _target(context, server))
        if server.spec.is_ours and {"open", "loads"} & set(steps):
            play(in_turn(len(context.names), 1, 120.0), _target(context, server))
        wait_until_idle(server.pid)
    return seen


def check(context: Context, server: Server) -> Json:
    """Return what a server finds in a picture, to be compared with what others find."""
    answer = server.predict(context.names[0], context.check_image.read_bytes())
    if answer.status_code != 200:
        raise ServerError(f"{server.spec.name} answers {answer.status_code}: {answer.text[:300]}")
    return {"findings": answer.json()["images"][0]["results"]}


def grow(context: Context, server: Server) -> Json:
    """Ask as many models as the server has room for, and see how its memory grows with each."""
    count = {plan.ALL: plan.TURN_MODELS, plan.BUDGET: plan.MODELS}.get(server.spec.name, plan.ROOM)
    image = context.image.read_bytes()
    memory = [server.memory()]
    for name in context.names[:count]:
        server.predict(name, image).raise_for_status()
        memory.append(server.memory())
    wait_until_idle(server.pid)
    memory[-1] = server.memory()
    return {
        "memory": [asdict(value) for value in memory],
        "all_processes": asdict(server.memory_of_all()),
        **_ledger(server),
    }


def hot1(context: Context, server: Server) -> Json:
    """One client asks one model."""
    return _closed(context, server, Workload(name="hot1", models=1, concurrency=1), "hot1_s")


def hot8(context: Context, server: Server) -> Json:
    """Eight clients ask one model (W0)."""
    return _closed(context, server, Workload(name="hot8", models=1, concurrency=8), "hot8_s")


def zipf(context: Context, server: Server) -> Json:
    """Four clients ask 24 models, the popular ones most."""
    workload = Workload(name="zipf", models=plan.MODELS, alpha=1.0, concurrency=4, seed=5)
    return _closed(context, server, workload, "zipf_s")


def storm(context: Context, server: Server) -> Json:
    """Four clients ask 24 models, all alike."""
    workload = Workload(name="storm", models=plan.MODELS, concurrency=4, seed=6)
    return _closed(context, server, workload, "storm_s")


def turn(context: Context, server: Server) -> Json:
    """One client asks twelve models in turn, so that none is there when it is asked for.

    A first round is not measured: afterwards what can be prepared once is prepared.
    """
    empty = server.memory()
    target = _target(context, server)
    first = _play(in_turn(plan.TURN_MODELS, 1, 60.0), target, server)
    settled = wait_until_idle(server.pid)
    trace = in_turn(plan.TURN_MODELS, context.scale.turn_rounds - 1, 60.0)
    measured = _play(trace, target, server)
    grown = [sample[1] - empty.rss for sample in first["memory"] + measured["memory"]]
    return {
        **measured,
        "empty": asdict(empty),
        "growth": max(grown),
        "settled_s": settled,
        **_ledger(server),
    }


def open_loops(context: Context, server: Server) -> Json:
    """Play the open-loop workloads at a share of our capacity, whatever the server's own is."""
    fleet = len(context.names)
    workloads = (W1.scaled(plan.MODELS), W2.scaled(fleet), W3.scaled(fleet), W4.scaled(plan.MODELS))
    return {workload.name: _open(context, server, workload, LOAD) for workload in workloads}


def loads(context: Context, server: Server) -> Json:
    """Play the workload W2 at further shares of our capacity."""
    workload = W2.scaled(len(context.names))
    return {str(load): _open(context, server, workload, load) for load in context.scale.loads}


def event_loops(context: Context, server: Server) -> Json:
    """Ask the ingress and the replica small questions while eight clients keep them busy."""
    target = _target(context, server)
    idle = Trace("idle", (Arrival(_UNLOADED_S, 0),), None, _UNLOADED_S)
    busy = _for_seconds(Workload(name="lag", models=1, concurrency=8), context.scale.lag_s)
    before = lag.read_buckets(server.metrics())
    probes: Json = {
        path: {
            "unloaded_s": play(idle, target, Probe(path)).probe_s,
            "loaded_s": play(busy, target, Probe(path)).probe_s,
        }
        for path in (_LIVE, _REPLICAS)
    }
    measured: Json = {}
    if before:
        time.sleep(_METRICS_DELAY_S)
        after = lag.read_buckets(server.metrics())
        measured = {
            deployment: lag.percentile_bound(before.get(deployment, {}), buckets, 99)
            for deployment, buckets in after.items()
        }
    return {"probes": probes, "p99_bound_s": measured}


STEPS: Mapping[str, Step] = {
    "hot1": hot1,
    "hot8": hot8,
    "zipf": zipf,
    "storm": storm,
    "lag": event_loops,
    "turn": turn,
    "open": open_loops,
    "loads": loads,
    "check": check,
}


def _closed(context: Context, server: Server, workload: Workload, duration: str) -> Json:
    trace = _for_seconds(workload, getattr(context.scale, duration))
    return _play(trace, _target(context, server), server)


def _for_seconds(workload: Workload, seconds: float) -> Trace:
    return closed_loop(workload, seconds, max(100, round(seconds * MOST_PER_SECOND)))


def _open(context: Context, server: Server, workload: Workload, load: float) -> Json:
    if context.capacity is None:
        raise ServerError("the capacity of ours is not known: its step `hot8` has failed")
    rate = load * context.capacity
    trace = open_loop(workload, context.scale.open_s, rate)
    target = replace(_target(context, server), timeout_s=PATIENCE_S)
    played = _play(trace, target, server)
    settled_s = wait_until_idle(server.pid)  # what nobody waits for any more is still worked on
    return {"rate": rate, "settled_s": settled_s, **played}


def _play(trace: Trace, target: Target, server: Server) -> Json:
    with Sampler(server.holder()) as sampler:
        run = play(trace, target)
    return {
        "run": run.as_json(),
        "memory": [[s.at_s, *_numbers(s.memory)] for s in sampler.samples],
        "all_processes": asdict(server.memory_of_all()),
    }


def _numbers(memory: Memory) -> tuple[int, int, int]:
    return memory.rss, memory.pss, memory.uss


def _ledger(server: Server) -> Json:
    """Return what our replica counts itself; nothing for others."""
    if not server.spec.is_ours:
        return {}
    report = server.report()
    resident = [model["key"] for model in report["models"] if model["state"] == "resident"]
    return {"resident": len(resident), "used_bytes": report["used_bytes"]}


def _target(context: Context, server: Server) -> Target:
    return Target(
        port=server.port,
        names=context.names,
        image=str(context.image),
        multiplexed_header=not server.spec.is_ours,
    )


def run_of(data: Json) -> Run:
    """Return the run in what a load step gave."""
    return Run.from_json(data["run"])
