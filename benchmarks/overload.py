"""`python -m benchmarks.overload`: more requests than can be answered, with and without a bound.

Two servers, one after the other, that differ in `max_wait_s` alone: its default, and null.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.fleet import make_fleet, model_name
from benchmarks.load import Target, play
from benchmarks.machine import describe
from benchmarks.overload_report import compose, summary
from benchmarks.processes import wait_until_idle
from benchmarks.serving import Server, ServerError, ServerSpec, running
from benchmarks.workloads import Workload, closed_loop, open_loop
from serve_app.settings import AppArgs

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "demo/samples/fasteners-2.jpg"
WORK = Path("~/.cache/serve_app/overload")
DEFAULT, NONE = "default", "null"
OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {DEFAULT: (), NONE: ("--max-wait", "none")}
)
FACTORS = (0.5, 1.0, 2.0, 4.0)
LOAD_S = 20.0
CLIENTS = 16
"""Of the closed loop whose rate is taken for the capacity."""
CAPACITY_S = 10.0
_MOST = 100_000
_WARM_UP = 40
_IDLE = 40
"""Requests one after the other."""

Json = dict[str, Any]


class Overloaded:
    """A server with one model, and what is measured on it."""

    def __init__(self, server: Server) -> None:
        """Measure `server`."""
        self._server = server
        self._image = IMAGE.read_bytes()
        self._target = Target(port=server.port, names=(model_name(0),), image=str(IMAGE))

    def measure(self) -> Json:
        """Return every figure; times in seconds."""
        for _ in range(_WARM_UP):
            self._ask()
        wait_until_idle(self._server.pid)
        idle = [self._ask() for _ in range(_IDLE)]
        workload = Workload(name="capacity", models=1, concurrency=CLIENTS)
        self._play_closed(workload, 3.0)
        capacity = self._play_closed(workload, CAPACITY_S)
        return {
            "idle_p50_s": statistics.median(idle),
            "capacity": capacity,
            "loads": [self._load(factor, capacity) for factor in FACTORS],
        }

    def _play_closed(self, workload: Workload, seconds: float) -> float:
        run = play(closed_loop(workload, seconds, _MOST), self._target)
        if len(run.ok) != len(run.records):
            raise ServerError(f"{CLIENTS} clients were not all answered: {run.errors}")
        return run.rate

    def _load(self, factor: float, capacity: float) -> Json:
        workload = Workload(name=f"{factor:g} x", models=1, seed=11)
        run = play(open_loop(workload, LOAD_S, factor * capacity), self._target)
        return {"factor": factor, **summary(run), "after_s": self._ask()}

    def _ask(self) -> float:
        """Ask once and wait for the answer; return the seconds."""
        start = time.perf_counter()
        answer = self._server.predict(model_name(0), self._image)
        took_s = time.perf_counter() - start
        if answer.status_code != 200:
            raise ServerError(f"{answer.status_code} while nothing else is asked: {answer.text}")
        return took_s


def measure(bound: str, work: Path) -> Json:
    """Start a server with this bound and measure it."""
    make_fleet(work / "models", 1)
    spec = ServerSpec(
        name=f"bound {bound}",
        module="ours",
        options=(*OPTIONS[bound], "--cache-dir", str(work / "cache")),
        interrupt_group=True,
    )
    with running(spec, work / "models", work) as server:
        return {"bound": bound, **Overloaded(server).measure()}


def main(arguments: list[str]) -> int:
    """Measure what the command line says and report it; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.overload", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=OPTIONS, help="these; none: only report")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the model and results")
    parser.add_argument("--report", type=Path, help="file for the report of all that was measured")
    given = parser.parse_args(arguments)
    work = given.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    for bound in OPTIONS if given.only is None else given.only:
        result = {**measure(bound, work), "machine": describe().as_json()}
        (work / f"{bound}.json").write_text(json.dumps(result))
        print(json.dumps(result), flush=True)
    files = [work / f"{bound}.json" for bound in OPTIONS]
    if all(file.exists() for file in files):
        text = compose([json.loads(file.read_text()) for file in files], _scale())
        print(text)
        if given.report is not None:
            given.report.write_text(text)
    return 0


def _scale() -> Json:
    """Return what the report says of how it was measured."""
    return {
        "max_wait_s": AppArgs().max_wait_s,
        "load_s": LOAD_S,
        "clients": CLIENTS,
        "capacity_s": CAPACITY_S,
        "idle": _IDLE,
        "image_bytes": IMAGE.stat().st_size,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
