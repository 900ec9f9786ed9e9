"""The queries of docs/metrics.md, put to a Prometheus that scrapes Ray's own exporter."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.server import ROOT, Json, Server, free_port, wait_until

LIMIT_S = 90.0
"""Metrics take a few of METRICS_INTERVAL_MS (conftest.py); a busy machine takes longer."""


def _queries() -> list[str]:
    """Return every query of docs/metrics.md; each is on a line of its own."""
    blocks = re.findall(r"```promql\n(.*?)```", (ROOT / "docs/metrics.md").read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _alerts() -> list[str]:
    groups = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def _names(queries: list[str]) -> set[str]:
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def _need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install prometheus")
    return found


def _ports(server: Server) -> list[int]:
    """Return the ports that Ray's own list for Prometheus names; it names them by the machine."""
    root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"  # noqa: S108 (Ray's own)
    (session,) = root.glob(f"session_*_{server.process.pid}")
    discovery = session / "prom_metrics_service_discovery.json"
    wait_until(discovery.exists, what="Ray's list of exporters")
    targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
    return [int(target.rpartition(":")[2]) for target in targets]


def _exercise(server: Server, picture: bytes) -> None:
    """Bring about everything that is counted: hits, misses, evictions, failures, regrets."""
    for model in ("codes-n", "codes-n", "components-n", "codes-n"):
        assert server.predict(model, picture).status_code == 200
    assert server.predict("corrupt", picture).status_code >= 400


@pytest.fixture(scope="module")
def busy(server: Server) -> Iterator[Server]:
    """The session's server with room for a single model, so that two take turns."""
    server.reset()
    server.reconfigure(memory_budget="1GiB", max_models=1)
    wait_until(lambda: server.replica()["max_models"] == 1, what="room for one model")
    yield server
    server.reset()


class Prometheus:
    """A running Prometheus on the loopback."""

    def __init__(self, port: int) -> None:
        """Talk to the one on `port`."""
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10.0)

    def get(self, path: str, **params: str) -> Any:  # noqa: ANN401 - JSON
        """Return the data of an answer of its API; None while it does not answer."""
        try:
            answer = self.client.get(f"/api/v1/{path}", params=params)
        except httpx.HTTPError:
            return None
        assert answer.status_code in (200, 503), answer.text
        return answer.json()["data"] if answer.status_code == 200 else None

    def is_up(self, targets: int) -> bool:
        """Return whether all targets were scraped."""
        found: Json = self.get("targets") or {"activeTargets": []}
        up = [target for target in found["activeTargets"] if target["health"] == "up"]
        return len(up) == targets

    def returns_data(self, query: str) -> bool:
        """Return whether a query has at least one series with a number."""
        result: Json = self.get("query", query=query) or {"result": []}
        return any(math.isfinite(float(series["value"][1])) for series in result["result"])


@pytest.fixture
def prometheus(busy: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """Scrape every exporter of the server each second, with the project's rules."""
    program, port, ports = _need("prometheus"), free_port(), _ports(busy)
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "deploy/alerts.yml")]
    (job,) = config["scrape_configs"]
    job["file_sd_configs"] = [{"files": [str(tmp_path / "targets.json")]}]
    targets = [{"targets": [f"127.0.0.1:{exporter}" for exporter in ports]}]
    (tmp_path / "targets.json").write_text(json.dumps(targets))
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
    running = Prometheus(port)
    try:
        wait_until(lambda: running.is_up(len(ports)), 30.0, "every target up")
        yield running
    finally:
        running.client.close()
        process.terminate()
        process.wait(30)


def test_every_query_returns_data(
    prometheus: Prometheus, busy: Server, scenes: dict[str, bytes]
) -> None:
    """While everything that is counted happens; and Prometheus takes our rules."""
    waiting = _queries()
    assert len(waiting) > 15

    def all_returned() -> bool:
        _exercise(busy, scenes["codes-1"])
        waiting[:] = [query for query in waiting if not prometheus.returns_data(query)]
        return not waiting

    try:
        wait_until(all_returned, LIMIT_S)
    except AssertionError:
        pytest.fail(f"no data within {LIMIT_S} s for: {waiting}")
    rules = [
        rule["query"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]
    ]
    assert len(rules) == len(_alerts())


def test_every_metric_in_a_query_is_exported(busy: Server, scenes: dict[str, bytes]) -> None:
    """Without Prometheus, too: a name that Ray or we changed would return nothing for ever."""
    names = _names(_queries()) | _names(_alerts())
    assert len(names) > 12
    exporters = [f"http://127.0.0.1:{port}/metrics" for port in _ports(busy)]

    def missing() -> set[str]:
        _exercise(busy, scenes["codes-1"])
        text = "\n".join(httpx.get(exporter).text for exporter in exporters)
        return {name for name in names if not re.search(rf"^{name}{{", text, re.MULTILINE)}

    try:
        wait_until(lambda: not missing(), 60.0)
    except AssertionError:
        pytest.fail(f"not exported: {missing()}")


@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_takes_the_files(kind: str, file: str) -> None:
    """The configuration with the rules that it names, and the rules alone."""
    done = subprocess.run(  # noqa: S603
        [_need("promtool"), "check", kind, ROOT / "deploy" / file], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
