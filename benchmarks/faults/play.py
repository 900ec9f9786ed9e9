"""One fault from start to end: `python -m benchmarks.faults.play FAULT --work FOLDER --out FILE`.

`python -m benchmarks.faults` runs it in a session and an environment of its own.
"""

import argparse
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import uvloop

from benchmarks.faults.nodes import DETECTORS, START_LIMIT_S, App, Nodes, wait_until
from benchmarks.faults.outcome import Outcome, judge
from benchmarks.faults.strikes import FAULTS, LOADED, RATE, UNLOADED, Fault, Stage
from benchmarks.faults.watch import Watch
from benchmarks.fleet import make_fleet, model_name
from benchmarks.load import Generator, Target
from benchmarks.processes import wait_until_idle
from benchmarks.records import Run
from benchmarks.serving import free_port
from benchmarks.workloads import Workload, open_loop
from serve_app.tuning import behind_haproxy

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "demo/samples/fasteners-2.jpg"
IMAGE_SIZE = 320
BUDGET_BYTES = 40 * 2**20
STRIKE_AT_S = 12.0
RECOVERY_LIMIT_S = 120.0
KEPT_ERRORS = 50


def play_fault(name: str, work: Path) -> Outcome:
    """Make the fault under load and return what came of it."""
    fault = FAULTS[name]
    names = tuple(model_name(number) for number in range(LOADED + UNLOADED))
    repository = work / "models"
    make_fleet(repository, len(names), imgsz=IMAGE_SIZE)
    app = App(
        repository=repository,
        cache_dir=work / "cache",
        port=free_port(),
        budget_bytes=BUDGET_BYTES,
        args={"threads": 1, "streams": 1},
        **fault.app,
    )
    with Nodes(os.environ["RAY_AUTH_TOKEN"]) as nodes:
        nodes.deploy(app.config())
        with Watch(app.port) as watch:
            ready = lambda: len(watch.last.pids) == DETECTORS and nodes.runs()  # noqa: E731
            wait_until(ready, START_LIMIT_S, f"{DETECTORS} detectors: {nodes.details()}")
            stage = Stage(nodes, app, watch, names, IMAGE.read_bytes())
            _warm_up(stage)
            return _under_load(name, fault, stage)


def _warm_up(stage: Stage) -> None:
    """Ask for each model of the load once, and wait for what is prepared in the background."""
    with httpx.Client(base_url=stage.url, timeout=60.0) as client:
        for name in stage.names[:LOADED]:
            headers = {"content-type": "image/jpeg"}
            path = f"/v1/models/{name}/predict"
            client.post(path, content=stage.image, headers=headers).raise_for_status()
    wait_until_idle(os.getpid(), share=0.6, limit_s=40.0)


def _under_load(name: str, fault: Fault, stage: Stage) -> Outcome:
    first_look = len(stage.watch.looks)
    workload = Workload(name="steady", models=LOADED, alpha=0.8, seed=7)
    trace = open_loop(workload, fault.load_s, RATE)
    target = Target(port=stage.app.port, names=stage.names, image=str(IMAGE))
    with ThreadPoolExecutor(1) as pool:
        generator = Generator(trace, target, kept_errors=KEPT_ERRORS)
        started = time.monotonic()
        running: Future[Run] = pool.submit(lambda: uvloop.run(generator.run()))
        time.sleep(STRIKE_AT_S)
        recovered_s = _strike(fault, stage)
        run = running.result()
    stage.end_burst()
    return judge(
        run,
        stage.watch.looks[first_look:],
        stage.probed,
        stage.burst,
        strike_at_s=stage.struck_at - started,
        spares_under_way=fault.spares_under_way,
        name=name,
        what=fault.what,
        front="HAProxy" if behind_haproxy(os.environ) else "Serve's own proxy",
        recovered_s=recovered_s,
        notes=tuple(stage.notes),
    )


def _strike(fault: Fault, stage: Stage) -> float | None:
    """Make the fault; return the seconds until all was as before, None if it never was."""
    stage.struck_at = time.monotonic()  # a fault amid a burst is made a moment later
    over = fault.strike(stage)
    while time.monotonic() - stage.struck_at < RECOVERY_LIMIT_S:
        if over():
            return time.monotonic() - stage.struck_at
        time.sleep(0.1)
    stage.notes.append(f"not as before: {stage.watch.last.pids}, {stage.nodes.details()}")
    return None


def main() -> None:
    """Play the fault that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", choices=sorted(FAULTS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # so that Serve's processes find this package
    outcome = play_fault(given.fault, given.work)
    given.out.write_text(json.dumps(outcome.as_json()))


if __name__ == "__main__":
    main()
