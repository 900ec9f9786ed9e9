"""`python -m benchmarks.fleet_size`: 10 registered models against 10,000.

Every model is a hard link to one trained checkpoint with a card, so that the disk holds one file;
for serve_app they are different models. Each size runs in a server of its own.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import fleet_size_parts
from benchmarks.fleet_size_report import compose
from benchmarks.load import Target, play
from benchmarks.machine import describe
from benchmarks.processes import cpu_seconds, family, memory_of
from benchmarks.serving import Server, ServerError, ServerSpec, running
from benchmarks.workloads import Workload, closed_loop

ROOT = Path(__file__).parents[1]
LIKE = ROOT / "models/fasteners-n/1"
IMAGE = ROOT / "demo/samples/fasteners-2.jpg"
WORK = Path("~/.cache/serve_app/fleet_size")
SIZES = (10, 10_000)
BUDGET_BYTES = 128 * 2**20
ASKED = 200
"""Requests for models in turn, each one another where there are so many."""
UNKNOWN = 2000
COLD = 10
NEW = 9
NEW_PAUSE_S = 5.0
"""Before each new model: longer than a scan of 10,000 stays fresh."""
IDLE_S = 20.0
PAUSE_S = 40.0
"""The idle time included; twice the age at which 10,000 models are scanned again."""
HOT_S = 8.0
SETTLE_LIMIT_S = 130.0
SCALE = {
    "asked": ASKED,
    "unknown": UNKNOWN,
    "cold": COLD - 1,
    "new": NEW,
    "new_pause": NEW_PAUSE_S,
    "pause": PAUSE_S,
    "ranked": fleet_size_parts.REQUESTS,
    "budget_mib": BUDGET_BYTES / 2**20,
}
"""What the report says of how it was measured."""
_REPEATS = 30
_ROLES = {
    "ray::ServeReplica:yolo:Ingress": "ingress",
    "ray::ServeReplica:yolo:Detector": "detector",
}

Json = dict[str, Any]


def name_of(number: int) -> str:
    """Return the name of a model."""
    return f"m{number:05d}"


def make_repository(folder: Path, count: int) -> None:
    """Register `count` models, all with the same file and card; those that exist stay."""
    originals = folder.parent / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    files = ("model.pt", "model.yaml")
    for file in files:
        if not (originals / file).exists():
            shutil.copy(LIKE / file, originals / file)
    for number in range(count):
        version = folder / name_of(number) / "1"
        if not version.exists():
            version.mkdir(parents=True)
            for file in files:
                os.link(originals / file, version / file)


class Fleet:
    """A server with its registered models, and what is measured on it."""

    def __init__(self, server: Server, repository: Path, count: int) -> None:
        """Measure `server`, whose `repository` holds `count` models."""
        self._server = server
        self._repository = repository
        self._count = count
        self._image = IMAGE.read_bytes()

    def measure(self) -> Json:
        """Return every figure, in seconds and bytes unless its name says otherwise."""
        found: Json = {"first_s": self._predict(0)}
        found["cold_s"] = statistics.median(self._predict(self._spread(n)) for n in range(1, COLD))
        found["settled_s"] = self._settle()
        found["page_s"] = self._median(f"/v1/models?limit=100&offset={self._count // 2}")
        found["largest_page_s"] = self._median("/v1/models?limit=1000")
        found["show_s"] = self._median(f"/v1/models/{name_of(self._count // 2)}")
        found["hot_rate"] = self._hot_rate()
        found["memory"] = self._memory()
        self._predict(0)
        found["idle_cores"] = self._idle()
        found["after_pause_s"] = self._after_pause()
        new = [self._new_model() for _ in range(NEW)]
        found["new_model_s"], found["slowest_new_model_s"] = statistics.median(new), max(new)
        started = time.monotonic()
        for number in range(ASKED):
            self._predict(self._spread(number * 7))
        found["asked_s"] = (time.monotonic() - started) / ASKED
        found["memory_asked"] = self._memory()
        found["unknown_s"] = self._unknown()
        found["memory_unknown"] = self._memory()
        found["largest_share"] = self._share()
        return found

    def _spread(self, number: int) -> int:
        """Return a model's number, far from its neighbours where there are many."""
        return number * 7919 % self._count

    def _predict(self, number: int) -> float:
        return self._timed(lambda: self._server.predict(name_of(number), self._image))

    def _timed(self, ask: Callable[[], httpx.Response], status: int = 200) -> float:
        start = time.perf_counter()
        answer = ask()
        took_s = time.perf_counter() - start
        if answer.status_code != status:
            raise ServerError(f"{answer.status_code} instead of {status}: {answer.text[:500]}")
        return took_s

    def _median(self, path: str) -> float:
        ask = lambda: self._server.client.get(path)  # noqa: E731
        return statistics.median(self._timed(ask) for _ in range(_REPEATS))

    def _hot_rate(self) -> float:
        workload = Workload(name="hot", models=1, concurrency=4)
        target = Target(port=self._server.port, names=(name_of(0),), image=str(IMAGE))
        return play(closed_loop(workload, HOT_S, 4000), target).rate

    def _settle(self) -> float | None:
        """Wait until the preparer has ended, which it does ten seconds after its last file.

        Returns:
            the seconds; None where it did not end in time
        """
        start = time.monotonic()
        while time.monotonic() - start < SETTLE_LIMIT_S:
            if all(role != "preparer" for role, _ in self._processes()):
                return time.monotonic() - start
            time.sleep(1.0)
        return None

    def _after_pause(self) -> float:
        """Return what a resident model takes when nobody has asked for anything since `_idle`."""
        time.sleep(PAUSE_S - IDLE_S)
        return self._predict(0)

    def _new_model(self) -> float:
        """Return what the first request for a model takes that was put there a moment ago.

        After a pause and a request for another, so that it finds a scan just begun.
        """
        time.sleep(NEW_PAUSE_S)
        self._predict(0)
        name = f"new-{time.time_ns()}"
        version = self._repository / name / "1"
        version.mkdir(parents=True)
        try:
            os.link(self._repository.parent / "originals/model.pt", version / "model.pt")
            return self._timed(lambda: self._server.predict(name, self._image))
        finally:
            shutil.rmtree(version.parent)

    def _unknown(self) -> float:
        """Ask for names that do not exist; return what one such request takes."""
        get = self._server.client.get
        asks = (partial(get, f"/v1/models/unknown-{number}") for number in range(UNKNOWN))
        return statistics.median(self._timed(ask, 404) for ask in asks)

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        for process in family(self._server.pid):
            try:
                title = "".join(process.cmdline())
            except psutil.Error:
                continue
            role = next((role for start, role in _ROLES.items() if title.startswith(start)), None)
            yield role or ("preparer" if "prepare_worker" in title else "Ray"), process

    def _memory(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for role, process in self._processes():
            found[role] = found.get(role, 0) + memory_of(process.pid).rss
        return found

    def _idle(self) -> dict[str, float]:
        """Return the share of a core that each takes while nobody asks for anything."""
        roles: dict[str, list[psutil.Process]] = {}
        for role, process in self._processes():
            roles.setdefault(role, []).append(process)
        before = {role: cpu_seconds(processes) for role, processes in roles.items()}
        time.sleep(IDLE_S)
        return {
            role: (cpu_seconds(processes) - before[role]) / IDLE_S
            for role, processes in roles.items()
        }

    def _share(self) -> float:
        report = self._server.report()
        return float(report["used_bytes"] / report["budget_bytes"])


def measure(count: int, work: Path) -> Json:
    """Start a server with `count` models and measure it."""
    repository = work / f"models-{count}"
    make_repository(repository, count)
    cache = Path(tempfile.mkdtemp(prefix="cache-", dir=work))
    options = ("--budget", str(BUDGET_BYTES), "--cache-dir", str(cache))
    spec = ServerSpec(
        name=f"fleet of {count}", module="ours", options=options, interrupt_group=True
    )
    started = time.monotonic()
    try:
        with running(spec, repository, work) as server:
            ready_s = time.monotonic() - started
            return {
                "count": count,
                "ready_s": ready_s,
                **Fleet(server, repository, count).measure(),
            }
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Measure what the command line says and report it; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet_size", description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="these sizes; none: only report")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for models and results")
    parser.add_argument("--report", type=Path, help="file for the report of all that was measured")
    given = parser.parse_args(arguments)
    work = given.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    for count in SIZES if given.only is None else given.only:
        result = measure(count, work)
        result["router"] = fleet_size_parts.router(count)
        result["registry"] = fleet_size_parts.registry(work / f"models-{count}")
        (work / f"{count}.json").write_text(json.dumps(result))
        print(json.dumps(result), flush=True)
    files = [work / f"{count}.json" for count in SIZES]
    if all(file.exists() for file in files):
        text = compose([json.loads(file.read_text()) for file in files], describe(), SCALE)
        print(text)
        if given.report is not None:
            given.report.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
