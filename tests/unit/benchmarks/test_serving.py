"""Servers are started, waited for and ended, whatever they do."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import bench, plan, serving
from benchmarks.fleet import model_path
from benchmarks.plan import QUICK
from benchmarks.servers.ours import make_config
from benchmarks.serving import ServerError, ServerSpec, running
from serve_app.settings import AppArgs, DetectorConfig

SERVER = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"pid": %d}' % os.getpid()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

# Who starts the tests in the background may have had SIGINT ignored, for all their children too.
signal.signal(signal.SIGINT, signal.SIG_IGN if STUBBORN else signal.default_int_handler)
if STUBBORN:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Scripted(ServerSpec):
    """Runs `module` as the text of a script instead of by its name."""

    def command(self, models: Path, port: int) -> list[str]:
        """See ServerSpec."""
        return [sys.executable, "-c", self.module, str(port)]


def scripted(text: str) -> Scripted:
    """Return how to run a script as a server."""
    return Scripted(name="scripted", module=text)


def test_a_server_runs_until_its_block_ends(tmp_path: Path) -> None:
    """It is ready inside, tells which process holds the models, and is gone afterwards."""
    with running(scripted(f"STUBBORN = False\n{SERVER}"), tmp_path, tmp_path) as server:
        assert server.holder() == server.pid
        assert server.memory().rss > 0
        assert server.memory_of_all().pss <= server.memory().rss
    assert not psutil.pid_exists(server.pid)


def test_what_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores Ctrl-C leaves neither itself nor its children behind."""
    monkeypatch.setattr(serving, "STOP_LIMIT_S", 0.3)
    with running(scripted(f"STUBBORN = True\n{SERVER}"), tmp_path, tmp_path) as server:
        started = psutil.Process(server.pid).children()
        assert len(started) == 1
    assert not psutil.pid_exists(server.pid)
    assert not started[0].is_running()


def test_an_error_in_the_block_ends_the_server_too(tmp_path: Path) -> None:
    """So does Ctrl-C."""
    with (
        pytest.raises(KeyboardInterrupt),
        running(scripted(f"STUBBORN = False\n{SERVER}"), tmp_path, tmp_path) as server,
    ):
        raise KeyboardInterrupt
    assert not psutil.pid_exists(server.pid)


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    """The error has the end of its log, and comes at once."""
    with (
        pytest.raises(ServerError, match="no such model"),
        running(scripted("raise SystemExit('no such model')"), tmp_path, tmp_path),
    ):
        raise AssertionError


@pytest.mark.parametrize("budget", [None, 300_000_000])
def test_our_config_is_one_that_we_accept(tmp_path: Path, budget: int | None) -> None:
    """Every key is known, and None leaves a setting at its default."""
    config = make_config(
        tmp_path, 8000, room=6, budget=budget, precision="fp32", cache_dir=tmp_path
    )
    (application,) = config["applications"]
    args = AppArgs.parse(application["args"])
    assert args.precision == "fp32"
    assert AppArgs.parse(make_config(tmp_path, 1)["applications"][0]["args"]).precision == "auto"
    limits = DetectorConfig.parse(application["deployments"][0]["user_config"])
    assert limits.max_models == 6
    assert limits.budget_bytes(10**9) == (budget or 600_000_000)


def test_a_server_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noted, the others are still started, and what is known is saved."""
    started = []

    @contextmanager
    def failing(spec: ServerSpec, models: Path, folder: Path) -> Iterator[Any]:
        started.append(spec)
        raise ServerError("gone")
        yield

    monkeypatch.setattr(bench, "running", failing)
    fleet = model_path(tmp_path / f"fleet-{QUICK.fleet}", f"m{QUICK.fleet - 1:02d}")
    fleet.parent.mkdir(parents=True)
    fleet.touch()
    picture = Path(os.devnull)
    one = bench.Bench(replace(QUICK, passes=1), tmp_path, picture, picture, lambda _: None)
    results = one.run(["storm"])
    assert [spec.name for spec in started] == [plan.AUTO, plan.STOCK]
    assert [text.split(":")[0] for text in results["failures"]] == [plan.AUTO, plan.STOCK]
    assert one.save().exists()
    rooms = [spec.room for spec in started]
    assert rooms == [plan.ROOM, plan.ROOM]
    assert started[0].interrupt_group
