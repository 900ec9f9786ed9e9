"""The fleet grows with its working set and goes when nobody asks: with Ray's own autoscaler.

`python -m benchmarks.autoscaling` prints a table; with a file name, it writes it there. The cluster
is benchmarks/fake_cluster.py: a head without CPUs, nodes of one CPU that the autoscaler adds, one
detector on each. All share the cores of this machine, so requests are few, and seconds are those
of starting processes here, not of machines in a cloud.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.fake_cluster import HOST, FakeCluster, wait_until
from benchmarks.machine import describe
from benchmarks.processes import family
from benchmarks.report import table
from benchmarks.serving import free_port

ROOT = Path(__file__).parents[1]
MODEL = "codes-n"
MODEL_BYTES, GRAPH_BYTES = 5_165_506, 17_203_200  # what it holds on a CPU, with two streams
PICTURE = ROOT / "demo/samples/codes-1.jpg"
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A repository of copies of one model, and how many a replica's budget holds."""

    models: int = 13
    room: float = 6.5
    max_replicas: int = 4
    clients: int = 1
    window_s: float = 10.0
    measure_s: float = 15.0
    settle_s: float = 5.0
    down_s: float = 5.0
    timeout_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Misses:
    """Answered requests of a while, those that had to wait for their model's load, and failures."""

    requests: int
    cold: int
    failed: int

    @property
    def per_100(self) -> float:
        """Misses per 100 requests."""
        return 100 * self.cold / max(1, self.requests)


@dataclass(slots=True)
class Outcome:
    """What a run showed; times in seconds."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    before: Misses = Misses(0, 0, 0)
    after: Misses = Misses(0, 0, 0)
    replicas: int = 0
    workers: int = 0


def make_repository(folder: Path, models: int) -> Path:
    """Fill `folder` with copies of one model under different names."""
    for number in range(models):
        shutil.copytree(ROOT / "models" / MODEL, folder / f"m{number:02}")
    return folder


def make_config(plan: Plan, repository: Path, cache: Path, port: int) -> dict[str, Any]:
    """Return serve_config.yaml with short delays, as an operator would write it."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] = {
        "repository": str(repository),
        "cache_dir": str(cache),
        "device": "cpu",
        "streams": 2,
        "threads": 2,
    }
    (detector,) = (one for one in application["deployments"] if one["name"] == "Detector")
    detector["autoscaling_config"] |= {
        "min_replicas": 0,
        "max_replicas": plan.max_replicas,
        "upscale_delay_s": 2,
        "downscale_delay_s": plan.down_s,
        "downscale_to_zero_delay_s": plan.down_s,
    }
    detector["autoscaling_config"]["policy"]["policy_kwargs"] = {"settle_s": plan.settle_s}
    detector["user_config"] = {
        "memory_budget": GRAPH_BYTES + int(plan.room * MODEL_BYTES),
        "working_set_window_s": plan.window_s,
    }
    return config


class Traffic:
    """A closed loop: each client asks for some model, waits for the answer, asks for another."""

    def __init__(self, url: str, models: int, clients: int) -> None:
        """Ask with `clients` threads, each model as often as any other."""
        self._url = url
        self._models = models
        self._ended = threading.Event()
        self._answers: list[tuple[float, bool, int]] = []  # when, cold, status
        self._threads = [
            threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(clients)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def misses(self, since: float, until: float) -> Misses:
        """Count what was answered between two times of time.monotonic()."""
        found = [answer for answer in list(self._answers) if since <= answer[0] < until]
        good = [cold for _, cold, status in found if status == 200]
        return Misses(len(good), sum(good), len(found) - len(good))

    def lately(self, seconds: float) -> Misses:
        """Count the last seconds."""
        now = time.monotonic()
        return self.misses(now - seconds, now)

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        with httpx.Client(base_url=self._url, timeout=90.0) as client:
            while not self._ended.is_set():
                cold, status = ask(client, f"m{chance.randrange(self._models):02}")
                self._answers.append((time.monotonic(), cold, status))


def ask(client: httpx.Client, model: str) -> tuple[bool, int]:
    """Send one picture; return whether its model had to be loaded, and the status, 0 for none."""
    try:
        answer = client.post(
            f"/v1/models/{model}/predict",
            content=PICTURE.read_bytes(),
            headers={"content-type": "image/jpeg"},
        )
    except httpx.HTTPError:
        return False, 0
    return answer.headers.get("x-model-cold-start") == "true", answer.status_code


class Application:
    """serve_app on a cluster: `python -m serve_app CONFIG` with its address."""

    def __init__(self, config: Mapping[str, Any], folder: Path, cluster: FakeCluster) -> None:
        """Deploy; `folder` takes the config and the log."""
        self.url = f"http://{HOST}:{config['http_options']['port']}"
        self.log = folder / "app.log"
        self._cluster = cluster
        path = folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve_app", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=cluster.environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def wait_until_deployed(self, timeout_s: float) -> None:
        """Return once it answers; there need be no detector."""
        try:
            wait_until(self._answers, timeout_s, "the application")
        except TimeoutError:
            raise TimeoutError(self.log.read_text()[-3000:]) from None

    def replicas(self) -> int:
        """Return how many detectors run."""
        answer = httpx.get(f"{self.url}/v1/replicas", timeout=10.0)
        return len(answer.json()["replicas"]) if answer.status_code == 200 else 0

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        finally:
            for left in family(self._process.pid):
                left.kill()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the launcher ended: {self.log.read_text()[-3000:]}")
        try:
            return httpx.get(f"{self.url}/health/live", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def deployed(plan: Plan, folder: Path) -> Iterator[tuple[FakeCluster, Application]]:
    """Start the cluster and the application; no detector runs yet."""
    repository = make_repository(folder / "models", plan.models)
    config = make_config(plan, repository, folder / "cache", free_port())
    with FakeCluster(
        folder, port=free_port(), dashboard_port=free_port(), workers=plan.max_replicas
    ) as cluster:
        application = Application(config, folder, cluster)
        try:
            application.wait_until_deployed(plan.timeout_s)
            yield cluster, application
        finally:
            application.stop()


def run(plan: Plan, cluster: FakeCluster, application: Application) -> Outcome:
    """Wake the fleet, let it grow, let it go, wake it again."""
    outcome = Outcome()
    outcome.steps.append(("no replica, no node: first request answered", wake(application)))
    with Traffic(application.url, plan.models, plan.clients) as traffic:
        grow(plan, cluster, application, traffic, outcome)
        calm(plan, cluster, application, traffic, outcome)
    leave(plan, cluster, application, outcome)
    outcome.steps.append(("first request after that answered", wake(application)))
    return outcome


def leave(plan: Plan, cluster: FakeCluster, application: Application, outcome: Outcome) -> None:
    """Watch the fleet go once nobody asks any more."""
    stopped = time.monotonic()
    wait_until(lambda: application.replicas() == 0, plan.timeout_s, "no replica", 0.5)
    outcome.steps.append(("traffic stops: last replica gone", time.monotonic() - stopped))
    wait_until(lambda: cluster.workers() == 0, plan.timeout_s, "no node", 0.5)
    outcome.steps.append(("traffic stops: last node gone", time.monotonic() - stopped))


def grow(
    plan: Plan, cluster: FakeCluster, application: Application, traffic: Traffic, outcome: Outcome
) -> None:
    """Watch the fleet grow under traffic: a second node, and a replica on it."""
    begun = time.monotonic()
    wait_until(lambda: cluster.workers() >= 2, plan.timeout_s, "a second node")
    second_node = time.monotonic()
    outcome.before = traffic.misses(begun + 1, second_node)
    outcome.steps.append(("traffic begins: second node there", second_node - begun))
    wait_until(lambda: application.replicas() >= 2, plan.timeout_s, "a second replica")
    outcome.steps.append(("traffic begins: second replica there", time.monotonic() - begun))
    outcome.replicas, outcome.workers = application.replicas(), cluster.workers()


def calm(
    plan: Plan, cluster: FakeCluster, application: Application, traffic: Traffic, outcome: Outcome
) -> None:
    """Wait until misses are rare, then measure them."""
    begun = time.monotonic()

    def is_calm() -> bool:
        time.sleep(5.0)
        lately = traffic.lately(5.0)
        print(f"{time.monotonic() - begun:.0f} s: {application.replicas()} replicas, {lately}")
        return lately.requests >= 10 and lately.per_100 <= outcome.before.per_100 / 10

    wait_until(is_calm, plan.timeout_s, "a tenth of the misses")
    outcome.steps.append(("after that: a tenth of the misses", time.monotonic() - begun))
    time.sleep(plan.measure_s)
    outcome.after = traffic.lately(plan.measure_s)
    outcome.replicas, outcome.workers = application.replicas(), cluster.workers()


def wake(application: Application) -> float:
    """Ask for a model while there is no replica; return the seconds until the answer."""
    started = time.monotonic()
    with httpx.Client(base_url=application.url, timeout=90.0) as client:
        _, status = ask(client, "m00")
    if status != 200:
        raise RuntimeError(f"the first request was answered with {status}")
    return time.monotonic() - started


def report(plan: Plan, outcome: Outcome) -> str:
    """Return what was measured as Markdown."""
    machine = describe()
    held = plan.models * MODEL_BYTES / 1e6
    room = plan.room * MODEL_BYTES / 1e6
    text = (
        "Written by `python -m benchmarks.autoscaling docs/benchmarks/autoscaling.md`: Ray's own "
        "autoscaler over its fake multi-node provider and real detectors, all of them and the "
        f"client on the {machine.cores} cores of one machine ({machine.cpu}, {machine.date[:10]}).",
        f"{plan.models} models of {MODEL_BYTES / 1e6:.1f} MB ({held:.0f} MB), each as often asked "
        "for as any other, in a closed loop of one request after the other, so there is never a "
        f"queue. A replica has room for {room:.0f} MB of models: the working set is "
        f"{held / room:.1f} times that. `min_replicas: 0`, a window of {plan.window_s:g} s, delays "
        f"of 2 s (up) and {plan.down_s:g} s (down), `settle_s: {plan.settle_s:g}`; a node goes "
        "after 5 s without work. Nodes are as the dashboard tells them, which learns of new ones "
        "late.",
    )
    steps = table(["step", "s"], ((name, f"{seconds:.1f}") for name, seconds in outcome.steps))
    misses = table(
        ["", "requests", "misses per 100", "failed"],
        [
            _row("one replica", outcome.before),
            _row(f"{outcome.replicas} replicas on {outcome.workers} nodes", outcome.after),
        ],
    )
    paragraphs = [line for part in text for line in (*textwrap.wrap(part, 100), "")]
    lines = ["# Autoscaling by working set", "", *paragraphs, *steps, *misses]
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, misses: Misses) -> list[str]:
    return [name, str(misses.requests), f"{misses.per_100:.1f}", str(misses.failed)]


def main(arguments: Sequence[str]) -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.autoscaling", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where to write the tables")
    file = parser.parse_args(arguments).file
    plan = Plan()
    with (
        tempfile.TemporaryDirectory(prefix="as-") as folder,
        deployed(plan, Path(folder)) as (cluster, application),
    ):
        outcome = run(plan, cluster, application)
    text = report(plan, outcome)
    print(text)
    if file is not None:
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
