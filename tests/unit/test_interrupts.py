"""An interrupt before Ray is started ends the launcher in order, too."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from serve_app.tuning import HAPROXY_BINARY, HAPROXY_SWITCH

ROOT = Path(__file__).parents[2]
_LAUNCHER = """
import sys
from pathlib import Path
from serve_app import __main__, tuning

def make_folder():
    Path(sys.argv[2]).mkdir()
    return Path(sys.argv[2])

tuning.make_folder = make_folder
sys.exit(__main__.main([sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_ray_is_started_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    """While HAProxy is asked for its version: that is killed and the folder removed."""
    folder, marker = tmp_path / "folder", tmp_path / "pid"
    process = _start_launcher(tmp_path, folder, marker)
    try:
        haproxy = int(_read(marker, process))
        assert folder.exists()
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert said.splitlines()[-1] == "serve_app: stopped"
    assert process.returncode == 0
    assert not folder.exists()
    assert not psutil.pid_exists(haproxy)


def _start_launcher(tmp_path: Path, folder: Path, marker: Path) -> subprocess.Popen[str]:
    """Start it with a HAProxy that writes its process id to `marker` and does not answer."""
    binary = tmp_path / "haproxy"
    binary.write_text(f"#!/bin/sh\necho $$ > {marker}\nexec sleep 60\n")
    binary.chmod(0o755)
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["repository"] = str(ROOT / "models")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config["http_options"]["port"] = probe.getsockname()[1]
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "RAY_ADDRESS": "local", HAPROXY_BINARY: str(binary)}
    environment.pop(HAPROXY_SWITCH, None)
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _LAUNCHER, str(path), str(folder)],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def _read(marker: Path, process: subprocess.Popen[str], timeout_s: float = 60.0) -> str:
    """Wait until something is in the file, and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if marker.exists() and (text := marker.read_text()).endswith("\n"):
            return text
        time.sleep(0.05)
    raise AssertionError("the launcher did not ask for HAProxy's version")
