"""A whole results.json with figures that were made up, so that the report can be tested."""

from typing import Any

import numpy as np

from benchmarks import plan
from benchmarks.plan import FULL, SCENARIOS, make_plan
from benchmarks.records import Record, Run
from benchmarks.workloads import W2, Workload, closed_loop, open_loop

MIB = 2**20
RATES = {
    plan.AUTO: 14.0,
    plan.FP32: 9.0,
    plan.STOCK: 2.0,
    plan.DOCUMENTED: 1.9,
    plan.ARTICLE: 2.5,
    plan.ALL: 15.0,
}
FINDINGS = [{"name": "nut", "class": 1, "confidence": 0.9}] * 9


def make_run(rate: float, *, clients: int = 4, seconds: float = 20.0, cold: float = 0.3) -> Run:
    """Return a closed loop whose latencies spread around what `rate` and `clients` allow."""
    random = np.random.default_rng(round(rate * 10))
    workload = Workload(name="made up", models=plan.MODELS, alpha=1.0, concurrency=clients)
    trace = closed_loop(workload, seconds, round(rate * seconds))
    records = []
    for number, arrival in enumerate(trace.arrivals):
        latency = clients / rate * float(random.lognormal(0, 0.25))
        at = number / rate
        records.append(
            Record(arrival.model, at, at, at + latency, 200, bool(random.random() < cold))
        )
    return Run(
        records=tuple(records), limit_s=seconds, open_loop=False, client_cpu_s=0.001 * len(records)
    )


def make_open_run(offered: float, capacity: float) -> Run:
    """Return an open loop against a server with one place to serve at."""
    trace = open_loop(W2.scaled(24), 20.0, offered)
    records, free = [], 0.0
    for arrival in trace.arrivals:
        free = max(free, arrival.at_s) + 1 / capacity
        records.append(Record(arrival.model, arrival.at_s, arrival.at_s, free, 200, cold=False))
    return Run(records=tuple(records), limit_s=20.0, open_loop=True, client_cpu_s=0.1)


def play(run: Run, held: float = 800.0) -> dict[str, Any]:
    """Return what a load step gives."""
    memory = [[float(t), int((held + 5 * np.sin(t)) * MIB), 0, 0] for t in range(0, 20, 2)]
    return {"run": run.as_json(), "memory": memory, "all_processes": {"pss": 1500 * MIB}}


def make_pass(*, slower: float = 1.0) -> dict[str, Any]:
    """Return one pass over all servers."""
    seen: dict[str, Any] = {}
    for server, rate in RATES.items():
        growth = [{"rss": (600 + 50 * n) * MIB} for n in range(plan.ROOM)]
        seen[server] = {
            "prepare": {"grow": {"memory": growth}},
            "check": {"findings": FINDINGS},
            "hot1": play(make_run(rate, clients=1)),
            "hot8": play(make_run(rate * 1.2 * slower, clients=8)),
            "zipf": play(make_run(rate)),
            "storm": play(make_run(rate * 0.9)),
        }
    for server in (plan.AUTO, plan.STOCK):
        own = RATES[server]
        seen[server]["open"] = {
            name: {"rate": 9.0, **play(make_open_run(9.0, own))}
            for name in ("W1", "W2", "W3", "W4")
        }
        seen[server]["loads"] = {
            str(load): {"rate": 15 * load, **play(make_open_run(15 * load, own))}
            for load in (0.3, 0.8, 0.95)
        }
    held = {"resident": 24, "used_bytes": 130 * MIB}
    seen[plan.BUDGET] = {
        "prepare": {"grow": {"memory": [{"rss": 600 * MIB}, {"rss": 740 * MIB}], **held}},
        "zipf": play(make_run(14.5, cold=0.0)),
    }
    turned = {plan.TURN_AUTO: (12.0, 680.0), plan.TURN_FP32: (7.0, 700.0)}
    for server, (rate, rss) in {**turned, plan.TURN_STOCK: (2.5, 900.0)}.items():
        run = make_run(rate, clients=1, cold=1.0)
        empty = {"empty": {"rss": 600 * MIB}, "growth": int(rss - 595) * MIB}
        seen[server] = {"turn": {**play(run, rss), **empty}}
    for bare, rate in ((plan.BARE_AUTO, 17.0), (plan.BARE_FP32, 11.0)):
        seen[bare] = {"measure": {"latencies_s": [1 / rate] * 80, "rate": rate}}
    seen[plan.PLAIN] = {"measure": [{"rss": 600 * MIB}, {"rss": 980 * MIB}]}
    seen[plan.MANY] = {
        "measure": {
            "models": 200,
            "rss": [400 * MIB, 1500 * MIB],
            "weights_bytes": 1000 * MIB,
            "parameters": 2_600_000,
        }
    }
    probe = {"unloaded_s": [0.004] * 20, "loaded_s": [0.006] * 99 + [0.03] * 2}
    seen[plan.AUTO]["lag"] = {
        "probes": {"/health/live": probe, "/v1/replicas": probe},
        "p99_bound_s": {"Detector": 0.01},
    }
    return {visit.server: seen[visit.server] for visit in make_plan(SCENARIOS, FULL)[0]}


def make_results(passes: int = 2) -> dict[str, Any]:
    """Return the content of results.json."""
    return {
        "machine": {
            "date": "2026-01-02 03:04 UTC",
            "cpu": "Some CPU (family 1, model 2)",
            "cores": 2,
            "flags": ["avx2", "avx512_bf16"],
            "memory_bytes": 24 * 2**30,
            "kernel": "6.1",
            "versions": {"python": "3.11.7", "ray": "2.60.0"},
            "load": 0.05,
        },
        "scale": {"fleet": 64},
        "image": "bus.jpg",
        "capacity": 16.8,
        "budget_bytes": 250 * MIB,
        "took_s": 1200.0,
        "failures": [],
        "passes": [make_pass(slower=1 - 0.1 * number) for number in range(passes)],
    }
