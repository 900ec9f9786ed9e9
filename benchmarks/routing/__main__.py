"""`python -m benchmarks.routing` prints the report; with a file name, it writes it there."""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from benchmarks.routing.report import report, rewritten
from benchmarks.routing.results import Run, floor, measure
from benchmarks.routing.simulator import OURS, STOCK, STOCK_ROUTER
from benchmarks.routing.workload import CELLS, Scale

SEEDS = (1, 2, 3)


def planned(scale: Scale) -> Iterator[Run]:
    """Yield every run; stock as documented is only there to be seen."""
    for cell in CELLS:
        if cell.load == 0.6 and cell.apart:
            yield Run(cell, STOCK.name, SEEDS[0], scale)
        for system in (STOCK_ROUTER, OURS):
            for seed in SEEDS:
                yield Run(cell, system.name, seed, scale)


def main() -> None:
    """Simulate, then print or write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where to write the report")
    parser.add_argument("--requests", type=int, default=Scale().requests, help="of each trace")
    args = parser.parse_args()
    scale = Scale(requests=args.requests)
    runs = list(planned(scale))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        floors = dict(
            zip(CELLS, pool.map(floor, CELLS, repeat(scale), repeat(SEEDS[0])), strict=True)
        )
        results = dict(zip(runs, pool.map(measure, runs), strict=True))
    text = report(results, floors)
    if args.file is None:
        print(text)
    else:
        args.file.write_text(rewritten(args.file.read_text() if args.file.exists() else "", text))


if __name__ == "__main__":
    main()
