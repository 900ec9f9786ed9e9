"""Starts a server to be measured, waits until it is ready, and ends all that it started."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import httpx
import psutil

from benchmarks.lag import INTERVAL
from benchmarks.processes import Memory, family, memory_of, sum_memory

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 180.0
STOP_LIMIT_S = 60.0
_TOKEN = secrets.token_hex(32)


class ServerError(Exception):
    """A server did not start or stop as it should; the message ends with its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """Which server to run, and how.

    name: in results and pictures
    module: of benchmarks.servers, run as a script
    room: models that it may keep in memory; None for its own default
    options: further arguments of the script
    interrupt_group: whether Ctrl-C goes to all its processes, as from a terminal
    """

    name: str
    module: str
    room: int | None = None
    options: tuple[str, ...] = ()
    interrupt_group: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is serve_app."""
        return self.module == "ours"

    def command(self, models: Path, port: int) -> list[str]:
        """Return the command that runs it."""
        command = [sys.executable, "-m", f"benchmarks.servers.{self.module}"]
        command += ["--models", str(models), "--port", str(port)]
        if self.room is not None:
            command += ["--room", str(self.room)]
        return [*command, *self.options]


class Server:
    """A running server."""

    def __init__(
        self, spec: ServerSpec, process: subprocess.Popen[bytes], port: int, log: Path
    ) -> None:
        """Wrap a process that was started and may not be ready yet."""
        self.spec = spec
        self.port = port
        self._process = process
        self._log = log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0)

    @property
    def pid(self) -> int:
        """The process that was started; the others descend from it."""
        return self._process.pid

    def wait_until_ready(self) -> float:
        """Wait until requests are answered; return the seconds.

        Raises:
            ServerError: it ended, or took too long
        """
        start = time.monotonic()
        while time.monotonic() - start < START_LIMIT_S:
            if self._process.poll() is not None:
                raise ServerError(f"{self.spec.name} ended: {self.last_words()}")
            with contextlib.suppress(httpx.HTTPError):
                if self.client.get("/health/ready", timeout=5.0).status_code == 200:
                    return time.monotonic() - start
            time.sleep(0.2)
        raise ServerError(f"{self.spec.name} not ready in {START_LIMIT_S} s: {self.last_words()}")

    def holder(self) -> int:
        """Return the id of the process that holds the models."""
        if not self.spec.is_ours:
            return int(self.client.get("/health/ready").json()["pid"])
        return int(self.report()["pid"])

    def report(self) -> dict[str, Any]:
        """Return what the one replica of serve_app says of itself."""
        (replica,) = self.client.get("/v1/replicas").json()["replicas"]
        return dict(replica)

    def predict(self, name: str, image: bytes) -> httpx.Response:
        """Ask one model."""
        headers = {"content-type": "image/jpeg", "serve_multiplexed_model_id": name}
        if self.spec.is_ours:
            headers.pop("serve_multiplexed_model_id")
        return self.client.post(f"/v1/models/{name}/predict", content=image, headers=headers)

    def memory(self) -> Memory:
        """Return the memory of the process that holds the models."""
        return memory_of(self.holder())

    def memory_of_all(self) -> Memory:
        """Return the memory of all its processes together."""
        return sum_memory(family(self.pid))

    def metrics(self) -> str:
        """Return what Ray's exporter says in Prometheus' format; empty where there is none."""
        root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"  # noqa: S108 (Ray's own)
        for port_file in root.glob(f"session_*_{self.pid}/metrics_export_port_*"):
            with contextlib.suppress(httpx.HTTPError, OSError):
                return httpx.get(f"http://127.0.0.1:{port_file.read_text()}/metrics").text
        return ""

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does, wait, and end what is left."""
        self.client.close()
        started = family(self.pid)
        if self._process.poll() is None:
            send = os.killpg if self.spec.interrupt_group else os.kill
            send(self.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        left = [process for process in {*started, *family(self.pid)} if process.is_running()]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10.0)
        self._process.wait(10.0)


@contextmanager
def running(spec: ServerSpec, models: Path, folder: Path) -> Iterator[Server]:
    """Run a server on the models of `models` until the block ends, however it ends.

    folder: takes its log
    """
    port = free_port()
    log = folder / f"{spec.name.replace(' ', '_')}.log"
    with log.open("wb") as output:
        process = _start(spec.command(models, port), output)
    server = Server(spec, process, port, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def run_script(
    module: str,
    *arguments: str,
    limit_s: float,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a script of this package to its end, with `variables` set; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=limit_s,
        check=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    return done.stdout


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """Return the environment of a server: a Ray of its own that asks for a token."""
    return {
        **os.environ,
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        **INTERVAL,
    }


def _start(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment(),
        start_new_session=True,
        cwd=ROOT,
    )
