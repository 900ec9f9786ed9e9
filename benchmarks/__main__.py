"""`python -m benchmarks`: runs every server on the same requests and writes the report."""

import argparse
import json
import signal
import sys
import time
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import FrameType

from benchmarks.bench import Bench
from benchmarks.plan import FULL, QUICK, SCENARIOS
from benchmarks.report import write_report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks"
CHECK_IMAGE = ROOT / "demo/samples/fasteners-1.jpg"
WORK = Path("~/.cache/serve_app/benchmarks")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 4 minutes instead of 20")
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), help="these scenarios")
    parser.add_argument(
        "--passes", type=int, help="how often the closest ratios are measured; default 2"
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument("--image", type=Path, help="picture to send; default Ultralytics' bus.jpg")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="folder for fleets, logs and results"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder for the report; default docs/benchmarks for a full run"
    )
    parser.add_argument("--report", type=Path, help="only write the report of this results.json")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the exit status."""
    given = parse(arguments)
    if given.list:
        say("\n".join(SCENARIOS))
        return 0
    if given.report is not None:
        say(str(write_report(json.loads(given.report.read_text()), given.docs or DOCS)))
        return 0
    whole = not given.quick and given.only is None
    work = given.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: servers must not outlive us
        signal.signal(number, _interrupt)
    image = given.image or bus()
    scale = QUICK if given.quick else FULL
    if given.passes:
        scale = replace(scale, passes=given.passes)
    bench = Bench(scale, work, image, CHECK_IMAGE, say)
    results = bench.run(given.only or SCENARIOS)
    docs = given.docs or (DOCS if whole else work / "report")
    say(f"results: {bench.save()}\nreport: {write_report(results, docs)}")
    return 1 if results["failures"] else 0


def bus() -> Path:
    """Return the photograph of 810 x 1080 pixels that comes with Ultralytics."""
    found = util.find_spec("ultralytics")
    if found is None or found.origin is None:
        raise SystemExit("ultralytics is not installed: run `make install` first")
    return Path(found.origin).parent / "assets/bus.jpg"


def say(text: str) -> None:
    """Write for the person at the terminal."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted; every server was stopped")
