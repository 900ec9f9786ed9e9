"""A Ray cluster on this machine whose autoscaler is the real one; its nodes are processes.

Ray's provider `fake_multinode` starts a raylet where others would start a machine. Everything else,
Serve's and Ray's autoscaler and what decides between them, is as in a cluster.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import psutil
import yaml

from benchmarks.processes import family

HOST = "127.0.0.1"
WORKER = "worker"
_STOP_TIMEOUT_S = 20.0
_START_TIMEOUT_S = 60.0

T = TypeVar("T")


def cluster_config(port: int, *, workers: int, idle_s: float) -> dict[str, Any]:
    """Return the autoscaler's config: a head without CPUs, and up to `workers` of one CPU each.

    The autoscaler checks it without filling in defaults, so every field stands here.
    """
    commands = [
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    ]
    return {
        "cluster_name": "fake",
        "max_workers": workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "gcs_address": f"{HOST}:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            WORKER: {
                "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": workers,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in commands},
    }


class FakeCluster:
    """Starts the cluster and ends everything that it started."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        dashboard_port: int,
        workers: int = 3,
        idle_s: float = 5.0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Keep config and log in `folder`; workers go when they were idle for `idle_s`.

        variables: of the environment of all that runs on the cluster
        """
        self.address = f"{HOST}:{port}"
        self._dashboard = f"http://{HOST}:{dashboard_port}"
        self._token = secrets.token_hex(32)
        self._log = folder / "ray.log"
        config = folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(cluster_config(port, workers=workers, idle_s=idle_s)))
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            **(variables or {}),
        }
        self._command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--num-cpus=0", "--object-store-memory=100000000", "--disable-usage-stats"),
            *(f"--node-ip-address={HOST}", f"--port={port}", f"--autoscaling-config={config}"),
            *(f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}"),
        ]

    def __enter__(self) -> Self:
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            wait_until(self._is_up, _START_TIMEOUT_S, "the cluster")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def workers(self) -> int:
        """Return how many nodes besides the head are alive."""
        answer = httpx.get(
            f"{self._dashboard}/nodes?view=summary",
            headers={"authorization": f"Bearer {self._token}"},
            timeout=10.0,
        )
        answer.raise_for_status()
        nodes = answer.json()["data"]["summary"]
        return len([node for node in nodes if node["raylet"].get("state") == "ALIVE"]) - 1

    def replicas(self, deployment: str) -> int:
        """Return how many replicas of a deployment run, of all applications."""
        answer = httpx.get(
            f"{self._dashboard}/api/serve/applications/",
            headers={"authorization": f"Bearer {self._token}"},
            timeout=10.0,
        )
        answer.raise_for_status()
        return sum(
            replica["state"] == "RUNNING"
            for application in answer.json()["applications"].values()
            for replica in application["deployments"].get(deployment, {}).get("replicas", ())
        )

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"ray start ended: {self._log.read_text()[-2000:]}")
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            return self.workers() == 0
        return False

    def _stop(self) -> None:
        """End the head, then whatever is left of its descendants: nodes, workers, Serve."""
        started = family(self._process.pid)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        for end in (None, psutil.Process.terminate, psutil.Process.kill):
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if end is not None:
                        end(process)
            _, started = psutil.wait_procs(started, timeout=_STOP_TIMEOUT_S / 2)
        self._process.wait(_STOP_TIMEOUT_S)


def wait_until(
    condition: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.1
) -> T:
    """Poll `condition` until it returns something true, and return that.

    Raises:
        TimeoutError: it did not within `timeout_s`
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(interval_s)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}")
