"""The application as a user runs it: `python -m serve_app CONFIG` in a process of its own."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
DEMO_MODELS = ("fasteners-n", "components-n", "codes-n", "fasteners-s")
START_TIMEOUT_S = 120.0
_DASHBOARD = re.compile(r"dashboard at .*?(127\.0\.0\.1:\d+)")

_TOKEN = secrets.token_hex(32)

Json = dict[str, Any]


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_config(
    repository: Path, port: int, *, args: Json | None = None, user_config: Json | None = None
) -> Json:
    """Return a Serve config for `repository`, as a user would write it."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "yolo",
                "import_path": "serve_app.app:build",
                "route_prefix": "/",
                "args": {"repository": str(repository), **(args or {})},
                "deployments": [
                    {"name": "Detector", "user_config": dict(user_config or {})},
                    {"name": "Ingress"},
                ],
            }
        ],
    }


def wait_until(condition: Any, timeout_s: float = 30.0, what: str = "") -> Any:  # noqa: ANN401
    """Poll `condition` until it returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}")


def start(
    config: Json,
    folder: Path,
    address: str = "local",
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the launcher on `config` in a session of its own; its output goes to folder/log.

    address: of the cluster to join; by default none that happens to run on this machine
    variables: of the environment, beside those of this process
    """
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        **(variables or {}),
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "serve_app", str(path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def session_processes(session: int) -> list[str]:
    """Return the command lines of the processes that belong to a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, IndexError):  # it ended while we looked
            continue
    return found


def stop(process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> list[str]:
    """Interrupt the launcher as Ctrl-C does; return what it left running, and end that."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout_s)
    finally:
        left = session_processes(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout_s)
    return left


class Server:
    """A running application and how to talk to it."""

    def __init__(
        self, config: Json, folder: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        """Start it and wait until it is ready."""
        self.config = config
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"
        self.log = folder / "log"
        self.process = start(config, folder, variables=variables)
        try:
            wait_until(self._is_ready, START_TIMEOUT_S, f"ready: {self.log.read_text()[-3000:]}")
        except BaseException:
            stop(self.process)
            raise
        self.client = httpx.Client(base_url=self.url, timeout=60.0)

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the launcher ended: {self.log.read_text()[-3000:]}")
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def predict(
        self, model: str, image: bytes, params: Mapping[str, str | float] | None = None
    ) -> httpx.Response:
        """Send one picture to one model."""
        return self.client.post(
            f"/v1/models/{model}/predict",
            content=image,
            headers={"content-type": "image/jpeg"},
            params=params,
        )

    def replica(self) -> Json:
        """Return the state of the only replica; there is none while it takes a new config."""
        replicas: list[Json] = wait_until(
            lambda: self.client.get("/v1/replicas").json()["replicas"], what="a replica"
        )
        assert len(replicas) == 1
        return replicas[0]

    def resident(self) -> set[str]:
        """Return the keys of the models that are resident."""
        return {m["key"] for m in self.replica()["models"] if m["state"] == "resident"}

    def reset(self) -> None:
        """Return to the default limits with nothing in memory."""
        self.reconfigure(memory_budget="1GiB")

        def is_default() -> bool:
            replica = self.replica()
            pinned = [model for model in replica["models"] if model["pinned"]]
            limits = (replica["budget_bytes"], replica["max_models"])
            return limits == (2**30, None) and not pinned and not replica["config_error"]

        wait_until(is_default, what="the default limits")
        for model in self.replica()["models"]:
            assert self.client.post(f"/v1/models/{model['key']}/unload").status_code == 200

    def reconfigure(self, **user_config: object) -> None:
        """Change the Detector's `user_config` in place, through Serve's own REST API."""
        self.config["applications"][0]["deployments"][0]["user_config"] = user_config
        found = _DASHBOARD.search(self.log.read_text())
        assert found is not None
        answer = httpx.put(
            f"http://{found[1]}/api/serve/applications/",
            json=self.config,
            headers={"authorization": f"Bearer {_TOKEN}"},
            timeout=30.0,
        )
        assert answer.status_code == 200, answer.text


def replicas_of(server: Server) -> dict[str, Json]:
    """Return what each replica says of itself, by its id; nothing while they cannot be asked."""
    answer = server.client.get("/v1/replicas")
    found = answer.json()["replicas"] if answer.status_code == 200 else []
    return {replica["replica_id"]: replica for replica in found}


@contextmanager
def serving(
    config: Json, folder: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run the application and stop it as Ctrl-C does; it must end in order and leave nothing."""
    server = Server(config, folder, variables)
    try:
        yield server
    finally:
        server.client.close()
        left = stop(server.process)
        assert left == []
        assert server.process.returncode == 0
        assert server.log.read_text().strip().endswith("serve_app: stopped")


@contextmanager
def renewed(
    serving: Callable[[], AbstractContextManager[Server]],
) -> Iterator[Callable[[], Server]]:
    """Hand out a function that returns the running server, a new one if that was stopped."""
    with ExitStack() as stack:
        running: list[Server] = []

        def server() -> Server:
            if not running or running[-1].process.poll() is not None:
                running.append(stack.enter_context(serving()))
            return running[-1]

        yield server
