"""The environment that serve_app.tuning sets, against the Ray that is installed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private import constants, haproxy
from ray.serve._private.http_util import configure_http_middlewares
from ray.serve.config import HTTPOptions

from serve_app import tuning
from serve_app.ingress.proxy_headers import ClientHeaders

_RAY = Path(constants.__file__).parents[2]
_SET = tuning.environment(
    {}, tuning.Front("127.0.0.1", tls=False, runs=True), Path("folder"), lambda: 4711
)


@pytest.mark.parametrize("name", sorted(_SET))
def test_ray_reads_each_variable(name: str) -> None:
    """A variable that Ray no longer knows would be without effect, and nobody would notice."""
    assert f'"{name}"' in Path(constants.__file__).read_text()


def test_ray_understands_each_value() -> None:
    """As its own processes do: when they start."""
    code = (
        "from ray.serve._private import constants as c;"
        "print(c.RAY_SERVE_ENABLE_HA_PROXY, c.RAY_SERVE_USE_GRPC_BY_DEFAULT,"
        "c.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, c.RAY_SERVE_HAPROXY_SOCKET_PATH,"
        "c.RAY_SERVE_HAPROXY_STATS_PORT, c.RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S)"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={**os.environ, **_SET},
        check=True,
        capture_output=True,
        text=True,
    )
    switches, values = ["True", "True"], ["folder/admin.sock", "4711", "2.0"]
    assert done.stdout.split() == [*switches, str(2**31 - 1), *values]


def test_what_ray_bundles_is_what_we_try() -> None:
    """The wheel that `ray[serve]` asks for on Linux holds a binary that runs."""
    if not sys.platform.startswith("linux"):
        pytest.skip("Ray bundles HAProxy for Linux alone")
    assert haproxy.get_haproxy_binary() == tuning._bundled()
    assert tuning.haproxy_runs({})


def test_replicas_behind_haproxy_clean_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their server takes the same middlewares as Serve's own proxy."""
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    util = importlib.import_module("ray.serve._private.http_util")
    monkeypatch.setattr(util, name, tuning.BASE[name])
    (middleware,) = configure_http_middlewares(HTTPOptions()).middlewares
    assert middleware.cls is ClientHeaders
    assert "configure_http_middlewares(" in (_RAY / "serve/_private/replica.py").read_text()
