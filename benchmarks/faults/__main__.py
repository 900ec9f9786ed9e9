"""`python -m benchmarks.faults [--only NAME]`: breaks things under load and says what was lost.

Each fault has a Ray cluster of its own, in a session that is ended whatever happens in it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.report import compose
from benchmarks.faults.strikes import FAULTS, RATE
from benchmarks.machine import describe
from benchmarks.session import in_session

ROOT = Path(__file__).parents[2]
WORK = Path("~/.cache/serve_app/faults")
LIMIT_S = 420.0


def main(arguments: list[str]) -> int:
    """Play the chosen faults, print the table and write the report; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), help="these faults")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for models and results")
    parser.add_argument("--report", type=Path, help="file for the report of all that was played")
    parser.add_argument("--no-play", action="store_true", help="only report what was played before")
    given = parser.parse_args(arguments)
    work = given.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in () if given.no_play else given.only or FAULTS:
        play(name, work)
    outcomes = known(work)
    text = compose(outcomes, describe(), RATE)
    print(text)
    if given.report is not None:
        given.report.write_text(text)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def play(name: str, work: Path) -> None:
    """Play one fault in a process of its own and save what came of it."""
    result = work / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.faults.play", name]
    command += ["--work", str(work), "--out", str(result)]
    print(f"{time.strftime('%H:%M:%S')} {name}: {FAULTS[name].what}", flush=True)
    try:
        in_session(command, work / f"{name}.log", LIMIT_S)
    except RuntimeError as error:
        raise SystemExit(f"{name} was not played to its end: {error}") from None


def known(work: Path) -> list[Outcome]:
    """Return the outcomes that were saved, in the order of the faults."""
    files: Iterable[Path] = (work / f"{name}.json" for name in FAULTS)
    return [Outcome.from_json(json.loads(file.read_text())) for file in files if file.exists()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
