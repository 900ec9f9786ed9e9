"""A command in a session and an environment of its own, ended whatever happens in it."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import family
from serve_app import tuning

ROOT = Path(__file__).parents[1]


def in_session(command: Sequence[str], log: Path, limit_s: float) -> None:
    """Run a command with the environment of a cluster, and end all that it leaves.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit_s`
        RuntimeError: it failed, with the end of what it wrote
    """
    folder = tuning.make_folder()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, folder),
            start_new_session=True,
            cwd=ROOT,
        )
    try:
        status = process.wait(limit_s)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed: {log.read_text()[-3000:]}")


def environment(user: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a cluster's processes: as `python -m serve_app` sets it."""
    front = tuning.Front("127.0.0.1", tls=False, runs=tuning.haproxy_runs(user))
    tuned = tuning.environment(user, front, folder, tuning.port_picker(taken=()))
    return {
        **user,
        **tuned,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a session that a process leads."""
    left = family(process.pid)
    for member in left:
        if member.is_running():
            member.kill()
    process.wait(10.0)
