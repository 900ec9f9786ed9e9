"""serve_app's engine without serve_app: one process, no HTTP, no Ray. Prints JSON.

    python -m benchmarks.servers.in_process loop --model FILE --image FILE --seconds S
    python -m benchmarks.servers.in_process many --models FOLDER --image FILE

`loop` is the ceiling: decode, preprocess and predict, one picture at a time, with all cores.
`many` opens every model of a folder and tells what one costs in memory.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import serve_app.engines  # noqa: F401 - settles the environment before torch is imported

import torch  # isort: skip

from benchmarks.processes import memory_of
from serve_app.engines.base import Engine, EngineModel
from serve_app.engines.decoding import decode_image
from serve_app.engines.factory import create_engines
from serve_app.engines.precision import Precision
from serve_app.types import ImageResult, ModelFormat, PredictParams

WARM_UP_S = 2.0
SAMPLED = 20


def open_engine(precision: str, cores: int) -> Engine:
    """Return the engine for checkpoints as a replica would make it, with all cores for one call."""
    torch.set_num_threads(cores)
    chosen: Precision = precision  # type: ignore[assignment] # the engine refuses others
    return create_engines("cpu", threads=cores, streams=1, precision=chosen)[ModelFormat.PT]


def predict(model: EngineModel, body: bytes) -> ImageResult:
    """Answer for one encoded picture."""
    (found,) = model.predict([model.preprocess(decode_image(body), PredictParams())])
    if not isinstance(found, ImageResult):
        raise found
    return found


def loop(path: Path, body: bytes, seconds: float, precision: str) -> dict[str, Any]:
    """Predict one picture again and again; return every latency in seconds."""
    model = open_engine(precision, len(os.sched_getaffinity(0))).open(path)
    model.warm_up()
    latencies = list(_timed(model, body, WARM_UP_S))
    latencies = list(_timed(model, body, seconds))
    return {"latencies_s": latencies, "rate": len(latencies) / sum(latencies)}


def _timed(model: EngineModel, body: bytes, seconds: float) -> "itertools.chain[float]":
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        predict(model, body)
        found.append(time.perf_counter() - before)
    return itertools.chain(found)


def many(folder: Path, body: bytes, precision: str) -> dict[str, Any]:
    """Open all models of a folder, let each answer once, and tell how the process grew.

    `rss` is the process's memory after each model, the first entry before any.
    """
    engine = open_engine(precision, len(os.sched_getaffinity(0)))
    paths = sorted(folder.glob("*/*/model.pt"))
    grown = [memory_of(os.getpid()).rss]
    models: list[EngineModel] = []
    for path in paths:
        model = engine.open(path)
        model.warm_up()
        predict(model, body)
        models.append(model)
        grown.append(memory_of(os.getpid()).rss)
    for model in models[:: max(1, len(models) // SAMPLED)]:
        predict(model, body)
    return {
        "models": len(models),
        "rss": [*grown, memory_of(os.getpid()).rss],
        "weights_bytes": sum(model.footprint.own_bytes for model in models),
        "parameters": _parameters(paths[0]),
    }


def _parameters(path: Path) -> int:
    """Return how many numbers a checkpoint's model has, counted apart from our engine."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    return sum(parameter.numel() for parameter in checkpoint["model"].parameters())


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, what in (("loop", "--model"), ("many", "--models")):
        sub = kinds.add_parser(kind)
        sub.add_argument(what, dest="path", type=Path, required=True)
        sub.add_argument("--image", type=Path, required=True)
        sub.add_argument("--precision", default="auto")
        sub.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    body = given.image.read_bytes()
    if given.kind == "loop":
        result = loop(given.path, body, given.seconds, given.precision)
    else:
        result = many(given.path, body, given.precision)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
