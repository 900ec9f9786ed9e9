"""Every `YOLO(path)` in memory in one plain process, each asked once. Prints JSON.

python -m benchmarks.servers.plain_yolo --models FOLDER --image FILE --count N
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ultralytics.models import YOLO

from benchmarks.fleet import model_name, model_path
from benchmarks.processes import memory_of
from benchmarks.servers.answers import decode


def resident(folder: Path, body: bytes, count: int) -> list[dict[str, int]]:
    """Return the process's memory before any model and after each."""
    held: list[Any] = []
    seen = [memory_of(os.getpid())]
    for number in range(count):
        model = YOLO(str(model_path(folder, model_name(number))))
        model.predict(decode(body), verbose=False)
        held.append(model)
        seen.append(memory_of(os.getpid()))
    return [{"rss": m.rss, "pss": m.pss, "uss": m.uss} for m in seen]


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    json.dump(resident(given.models, given.image.read_bytes(), given.count), sys.stdout)


if __name__ == "__main__":
    main()
