"""A Ray cluster of several nodes on this machine, with serve_app on it, and ways to break it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
from ray.cluster_utils import Cluster

from benchmarks.serving import free_port

DETECTORS = 3
START_LIMIT_S = 150.0
_HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head node alone."""
_STORE_BYTES = 100 * 2**20

Json = dict[str, Any]


class StageError(Exception):
    """The cluster or the application did not do what a fault test builds on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """How serve_app is deployed.

    budget_bytes: of each detector
    args: further `args` of the application
    import_path: of what builds it
    ingresses: replicas of the ingress
    """

    repository: Path
    cache_dir: Path
    port: int
    budget_bytes: int
    args: Json = field(default_factory=dict)
    import_path: str = "serve_app.app:build"
    ingresses: int = 1

    def config(self, **changed: object) -> Json:
        """Return the Serve config; `changed` are other `args` than before."""
        ingress = {
            "name": "Ingress",
            "num_replicas": self.ingresses,
            "ray_actor_options": {"num_cpus": 0, "resources": {_HEAD: 0.001}},
        }
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {
                    "name": "yolo",
                    "import_path": self.import_path,
                    "route_prefix": "/",
                    "args": {
                        "repository": str(self.repository),
                        "cache_dir": str(self.cache_dir),
                        "device": "cpu",
                        **self.args,
                        **changed,
                    },
                    "deployments": [
                        {
                            "name": "Detector",
                            "num_replicas": DETECTORS,
                            "user_config": {"memory_budget": self.budget_bytes},
                        },
                        ingress,
                    ],
                }
            ],
        }


class Nodes:
    """A head without CPUs, for the controller, the front and the ingress, and a node a detector."""

    def __init__(self, token: str) -> None:
        """Start them; `token` is what the environment tells Ray to ask for."""
        self._port = free_port()
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self._port}",
            headers={"authorization": f"Bearer {token}"},
            timeout=30.0,
        )
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_host": "127.0.0.1",
                "dashboard_port": self._port,
                "object_store_memory": _STORE_BYTES,
            },
        )
        self._workers = [self.add() for _ in range(DETECTORS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]

    def add(self) -> Any:  # noqa: ANN401 - Ray's own Node
        """Start a node that has room for one detector."""
        return self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)

    def kill(self, pid: int) -> None:
        """Kill the node on which process `pid` runs: everything on it at the same time."""
        for node in list(self._workers):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            family = [raylet, *raylet.children(recursive=True)]
            if pid in {process.pid for process in family}:
                _kill_at_once(family)
                self._workers.remove(node)
                self._cluster.remove_node(node, allow_graceful=False)
                return
        raise StageError(f"no node holds process {pid}")

    def deploy(self, config: Json) -> None:
        """Deploy, as `serve deploy` does."""
        answer = self._client.put("/api/serve/applications/", json=config)
        if answer.status_code != 200:
            raise StageError(f"the deployment was refused: {answer.status_code} {answer.text}")

    def details(self) -> Json | None:
        """Return what Serve's controller says of the application; None when it does not answer."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = self._client.get("/api/serve/applications/", timeout=3.0)
            if answer.status_code == 200:
                found: Json | None = answer.json()["applications"].get("yolo")
                return found
        return None

    def runs(self, deployments: tuple[str, ...] = ("Detector", "Ingress")) -> bool:
        """Whether Serve says that the application is as it was last deployed, replicas included."""
        details = self.details()
        if details is None or details["status"] != "RUNNING":
            return False
        return all(details["deployments"][name]["status"] == "HEALTHY" for name in deployments)


def controller_pid() -> int | None:
    """Return the process of Serve's controller, None while there is none."""
    return next(iter(_processes("ray::ServeController")), None)


def ingress_pids() -> frozenset[int]:
    """Return the processes of the ingress' replicas."""
    return frozenset(_processes("ray::ServeReplica:yolo:Ingress"))


def kill(pid: int) -> None:
    """Kill one process with SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, its connections included."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop(pid: int) -> None:
    """Stop one process with SIGSTOP: it stays, its connections stay open, it does nothing."""
    os.kill(pid, signal.SIGSTOP)


def wait_until(
    condition: Callable[[], bool], limit_s: float, what: str, pause_s: float = 0.25
) -> float:
    """Poll `condition`, with pauses; return the seconds until it was true.

    Raises:
        StageError: it was not within `limit_s`
    """
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if condition():
            return time.monotonic() - start
        time.sleep(pause_s)
    raise StageError(f"not within {limit_s:g} s: {what}")


def _kill_at_once(processes: list[psutil.Process]) -> None:
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)


def _processes(begins: str) -> list[int]:
    """Return the descendants of this process whose command line begins so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "".join(process.cmdline()).startswith(begins):
                found.append(process.pid)
    return found
