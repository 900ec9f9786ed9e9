"""Three nodes from start to end, for test_routing.py: `python -m tests.integration.routing_play`.

It runs in a session and an environment of its own: see benchmarks.session.in_session.
"""

import argparse
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.nodes import wait_until
from benchmarks.fleet import LIKE, model_name, model_path
from benchmarks.routing_cluster import IMAGE, MODELS, Stage, measure, stage

FAN = {"name": "fan", "import_path": "tests.integration.fan:app", "route_prefix": "/fan"}
GATHERS = 4
REQUESTS = 300


def play(work: Path) -> dict[str, Any]:
    """Return what each of the checks saw."""
    _copy_models(work / "models")
    with stage(work, "ours", [FAN]) as made:
        return {
            "trace": asdict(measure(made, "ours", REQUESTS)),
            "gathered": _gather(made),
            "killed": _kill(made),
        }


def _copy_models(folder: Path) -> None:
    """Make the fleet of one file: models that differ would take longer and show nothing more."""
    for number in range(MODELS):
        path = model_path(folder, model_name(number))
        path.parent.mkdir(parents=True)
        shutil.copy(LIKE, path)


def _gather(made: Stage) -> dict[str, Any]:
    """Ask for eight models at once within one request, several such requests beside each other."""
    models = [f"{name}@1" for name in made.names[:8]]

    def one(_: int) -> list[str]:
        answer = httpx.post(
            f"{made.url}/fan",
            params={"models": ",".join(models)},
            content=IMAGE.read_bytes(),
            timeout=60.0,
        )
        answer.raise_for_status()
        found: list[str] = answer.json()
        return found

    wait_until(lambda: _is_up(made), 30.0, "the application that asks several models")
    with ThreadPoolExecutor(GATHERS) as pool:
        return {"asked": models, "answered": list(pool.map(one, range(GATHERS)))}


def _is_up(made: Stage) -> bool:
    return httpx.get(f"{made.url}/fan", timeout=10.0).status_code != httpx.codes.NOT_FOUND


def _kill(made: Stage) -> dict[str, Any]:
    """Kill the replica with the most models; ask for all of them at once."""
    victim = max(made.replicas(), key=lambda replica: len(replica["models"]))
    names = [model["key"].partition("@")[0] for model in victim["models"]]
    os.kill(victim["pid"], signal.SIGKILL)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        statuses = [answer.status_code for answer in pool.map(made.ask, names)]
    return {"models": names, "statuses": statuses, "seconds": time.monotonic() - started}


def main() -> None:
    """Play, and write what was seen as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.write_text(json.dumps(play(given.work)))


if __name__ == "__main__":
    main()
