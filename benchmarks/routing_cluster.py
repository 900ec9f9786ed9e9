"""`python -m benchmarks.routing_cluster`: our router beside Ray's own, on three real Ray nodes.

Three detectors whose budgets hold the models of the trace together but not one by one; the same
Zipf trace over HTTP for both routers, each with a cluster of its own. What counts is how often a
request finds its model in memory, after a warm phase that the trace begins with.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.faults.nodes import DETECTORS, START_LIMIT_S, App, Nodes, wait_until
from benchmarks.fleet import make_fleet, model_name
from benchmarks.load import Generator, Target
from benchmarks.records import Run, percentile
from benchmarks.serving import free_port
from benchmarks.session import in_session
from benchmarks.workloads import Workload, closed_loop

ROOT = Path(__file__).parents[1]
WORK = Path("~/.cache/serve_app/routing")
IMAGE = ROOT / "demo/samples/fasteners-2.jpg"
IMAGE_SIZE = 320
MODELS = 24
HELD = 10
"""Models that one detector's budget holds, and half a one."""
REQUESTS = 500
WARM = 100
"""Requests of the trace that are not counted."""
CLIENTS = 8
"""Each waits for its answer, so that a slow machine is not asked for more than it can do."""
LONGEST_S = 120.0
ZIPF = Workload(name="Zipf", models=MODELS, alpha=0.9, concurrency=CLIENTS, seed=11)
LIMIT_S = 230.0

# A deployment's own configuration takes the place of what app.py says; its class is Ray's default.
STOCK = {"request_routing_stats_period_s": 10.0}
ROUTERS: dict[str, dict[str, Any] | None] = {"ours": None, "stock": STOCK}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one router made of the trace.

    requests: after the warm phase; loaded: those that found their model in memory
    copies: models in memory at the end, each counted as often as it is there
    """

    router: str
    requests: int
    answered: int
    loaded: int
    copies: int
    p50_s: float
    p99_s: float

    @property
    def hit_ratio(self) -> float:
        """Share of the answered requests that found their model in memory."""
        return self.loaded / self.answered if self.answered else 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Three nodes with the application on them."""

    nodes: Nodes
    app: App
    names: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where the application listens."""
        return f"http://127.0.0.1:{self.app.port}"

    def ask(self, name: str) -> httpx.Response:
        """Ask one model for its answer to the picture."""
        return httpx.post(
            f"{self.url}/v1/models/{name}/predict",
            content=IMAGE.read_bytes(),
            headers={"content-type": "image/jpeg"},
            timeout=60.0,
        )

    def replicas(self) -> list[dict[str, Any]]:
        """Return what the detectors say of themselves; none while the front is not up."""
        try:
            answer = httpx.get(f"{self.url}/v1/replicas", timeout=10.0)
        except httpx.HTTPError:
            return []
        found: list[dict[str, Any]] = answer.json()["replicas"] if answer.is_success else []
        return found


@contextmanager
def stage(
    work: Path, router: str, applications: Sequence[dict[str, Any]] = (), held: int = HELD
) -> Iterator[Stage]:
    """Start everything, with budgets for `held` models each; `applications` run beside ours."""
    names = tuple(model_name(number) for number in range(MODELS))
    make_fleet(work / "models", MODELS, imgsz=IMAGE_SIZE)
    app = App(
        repository=work / "models",
        cache_dir=work / "cache",
        port=free_port(),
        budget_bytes=2**30,
        args={"threads": 1, "streams": 1},
    )
    config = app.config()
    config["applications"] += applications
    detector = config["applications"][0]["deployments"][0]
    if (settings := ROUTERS[router]) is not None:
        detector["request_router_config"] = settings
    with Nodes(os.environ["RAY_AUTH_TOKEN"]) as nodes:
        made = Stage(nodes, app, names)
        nodes.deploy(config)
        wait_until(lambda: len(made.replicas()) == DETECTORS, START_LIMIT_S, "three detectors")
        made.ask(names[0]).raise_for_status()
        budget = _budget(made.replicas(), held)
        detector["user_config"] = {"memory_budget": budget}
        nodes.deploy(config)
        wait_until(lambda: _budgets(made) == [budget] * DETECTORS, 60.0, "the budgets")
        yield made


def _budget(replicas: Sequence[dict[str, Any]], held: int) -> int:
    """Return a budget for `held` models and a half, their graph included."""
    holder = max(replicas, key=lambda replica: int(replica["used_bytes"]))
    own = int(holder["models"][0]["bytes"])
    return int(holder["used_bytes"]) - own + own * (2 * held + 1) // 2


def _budgets(made: Stage) -> list[int]:
    return [replica["budget_bytes"] for replica in made.replicas()]


def measure(made: Stage, router: str, requests: int = REQUESTS) -> Outcome:
    """Play the trace, or its first `requests`, and count what came after the warm phase."""
    trace = closed_loop(ZIPF, LONGEST_S, requests)
    target = Target(port=made.app.port, names=made.names, image=str(IMAGE))
    run: Run = uvloop.run(Generator(trace, target).run())
    counted = sorted(run.records, key=lambda record: record.sent_s)[WARM:]
    answered = [record for record in counted if record.status == httpx.codes.OK]
    latencies = [record.latency_s for record in answered]
    return Outcome(
        router=router,
        requests=len(counted),
        answered=len(answered),
        loaded=sum(record.cold is False for record in answered),
        copies=sum(len(replica["models"]) for replica in made.replicas()),
        p50_s=percentile(latencies, 50),
        p99_s=percentile(latencies, 99),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as Markdown."""
    head = "| router | requests | found in memory | p50, ms | p99, ms | copies at the end |"
    rows = [
        f"| {one.router} | {one.requests} | {one.hit_ratio:.1%} | {1000 * one.p50_s:.0f} "
        f"| {1000 * one.p99_s:.0f} | {one.copies} of {MODELS} models |"
        for one in outcomes
    ]
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|", *rows])


def main(arguments: list[str]) -> int:
    """Play the trace for each router and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.routing_cluster", description=__doc__)
    parser.add_argument("--only", choices=sorted(ROUTERS), help="one router")
    parser.add_argument("--held", type=int, default=HELD, help="models that a budget holds")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for models and results")
    parser.add_argument("--here", type=Path, metavar="OUT", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    work = given.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    if given.here is not None:
        with stage(work, given.only, held=given.held) as made:
            given.here.write_text(json.dumps(asdict(measure(made, given.only))))
        return 0
    outcomes = []
    for router in [given.only] if given.only else ROUTERS:
        out = work / f"{router}.json"
        again = ["--only", router, "--held", str(given.held), "--work", str(work)]
        again += ["--here", str(out)]
        in_session(
            [sys.executable, "-m", "benchmarks.routing_cluster", *again], work / "log", LIMIT_S
        )
        outcomes.append(Outcome(**json.loads(out.read_text())))
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
