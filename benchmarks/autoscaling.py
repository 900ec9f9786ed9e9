"""The fleet grows with its working set and goes when nobody asks: with Ray's own autoscaler.

`python -m benchmarks.autoscaling` prints a table; with a file name, it writes it there. The cluster
is benchmarks/fake_cluster.py: a head without CPUs, nodes of one CPU that the autoscaler adds, one
detector on each. All share the cores of this machine, so requests are few, and seconds are those
of starting processes here, not of machines in a cloud.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.autoscaling_parts import (
    Misses,
    Outcome,
    Plan,
    Traffic,
    agreed,
    ask,
    count_replicas,
    name_of,
)
from benchmarks.autoscaling_report import report
from benchmarks.fake_cluster import HOST, FakeCluster, wait_until
from benchmarks.machine import describe
from benchmarks.processes import family
from benchmarks.serving import free_port

ROOT = Path(__file__).parents[1]
MODEL = "codes-n"
MODEL_BYTES, GRAPH_BYTES = 5_165_506, 17_203_200  # what it holds on a CPU, with two streams
_STOP_TIMEOUT_S = 60.0


def make_repository(folder: Path, models: int) -> Path:
    """Fill `folder` with copies of one model under different names."""
    for number in range(models):
        shutil.copytree(ROOT / "models" / MODEL, folder / name_of(number))
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
        "spare_copies_after_s": plan.spare_s,
    }
    (ingress,) = (one for one in application["deployments"] if one["name"] == "Ingress")
    ingress["autoscaling_config"] |= {
        "max_replicas": 2,
        "target_ongoing_requests": plan.ingress_target,
        "upscale_delay_s": 2,
        "downscale_delay_s": plan.down_s,
    }
    return config


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
        """Return how many detectors run; see `agreed`."""
        with httpx.Client(base_url=self.url, timeout=5.0) as client:
            return agreed(lambda: count_replicas(client))

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
    shrink(plan, application, outcome)
    scale_ingress(plan, cluster, application, outcome)
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


def shrink(plan: Plan, application: Application, outcome: Outcome) -> None:
    """Ask for a few models only, with another one pinned, and see what is left of the fleet."""
    pinned, begun = name_of(0), time.monotonic()
    with (
        httpx.Client(base_url=application.url, timeout=90.0) as client,
        Traffic(application.url, plan.hot, plan.clients, first=1) as traffic,
    ):
        client.post(f"/v1/models/{pinned}/pin").raise_for_status()
        for left in range(outcome.replicas - 1, 0, -1):
            there = f"{left} left"
            wait_until(lambda: application.replicas() <= left, plan.timeout_s, there, 0.2)  # noqa: B023
            outcome.steps.append((f"few models are asked for: {there}", time.monotonic() - begun))
        time.sleep(plan.settle_s)
        cold, status = ask(client, pinned)
        good = status == 200
        outcome.pinned = Misses(int(good), int(good and cold), int(not good))
        client.post(f"/v1/models/{pinned}/unpin").raise_for_status()
    outcome.shrinking = traffic.all_misses


def scale_ingress(
    plan: Plan, cluster: FakeCluster, application: Application, outcome: Outcome
) -> None:
    """Have many requests at the same time, then few; detectors have enough of one."""

    def there_are(count: int) -> bool:
        return cluster.replicas("Ingress") == count

    with Traffic(application.url, plan.hot, 1, first=1) as few:
        begun = time.monotonic()
        with Traffic(application.url, plan.hot, plan.ingress_clients, first=1) as many:
            wait_until(lambda: there_are(2), plan.timeout_s, "a second ingress", 0.2)
            outcome.steps.append(("many requests: second ingress there", time.monotonic() - begun))
            time.sleep(plan.settle_s)
        begun = time.monotonic()
        wait_until(lambda: there_are(1), plan.timeout_s, "one ingress", 0.2)
        outcome.steps.append(("few requests: one ingress left", time.monotonic() - begun))
        time.sleep(plan.settle_s)
    outcome.many = many.all_misses + few.all_misses


def wake(application: Application) -> float:
    """Ask for a model while there is no replica; return the seconds until the answer."""
    started = time.monotonic()
    with httpx.Client(base_url=application.url, timeout=90.0) as client:
        _, status = ask(client, "m00")
    if status != 200:
        raise RuntimeError(f"the first request was answered with {status}")
    return time.monotonic() - started


def main(arguments: Sequence[str]) -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.autoscaling", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where to write the tables")
    file = parser.parse_args(arguments).file
    plan = Plan(down_s=10.0, spare_s=3.0)
    with (
        tempfile.TemporaryDirectory(prefix="as-") as folder,
        deployed(plan, Path(folder)) as (cluster, application),
    ):
        outcome = run(plan, cluster, application)
    text = report(plan, outcome, describe(), MODEL_BYTES)
    print(text)
    if file is not None:
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
