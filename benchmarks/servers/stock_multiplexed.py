"""Ray Serve as its documentation shows it: `@serve.multiplexed` with `YOLO(path)`.

    python -m benchmarks.servers.stock_multiplexed --models FOLDER --port P [--room N]

`--as-documented` is Ray's own example: predict on the event loop, with the cores that Ray and
Ultralytics give by default, behind the default proxy.

Otherwise it is helped where that is a matter of a line: the replica owns all cores (Ray gives
OpenMP one by default), torch is told to use them (Ultralytics sets it to one core fewer on every
model's first predict), and predict runs in one thread beside the event loop, so that pictures are
received meanwhile.
"""

import argparse
import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from ultralytics.models import YOLO

from benchmarks.fleet import model_path
from benchmarks.servers.answers import answer, decode


def build(models: Path, room: int, cores: int | None, *, direct: bool = False) -> serve.Application:
    """Return the application.

    cores: that the replica owns and torch uses; None for what Ray and Ultralytics give
    direct: predict on the event loop, as in Ray's own example
    """
    options = {"num_cpus": 1 if cores is None else cores}

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options=options)
    class Stock:
        def __init__(self) -> None:
            self._pool = ThreadPoolExecutor(1)
            self._cold: ContextVar[bool] = ContextVar("cold", default=False)

        @serve.multiplexed(max_num_models_per_replica=room)  # type: ignore[untyped-decorator]
        async def get_model(self, name: str) -> Any:  # noqa: ANN401
            self._cold.set(True)
            return YOLO(str(model_path(models, name)))

        async def __call__(self, request: Request) -> Response:
            if request.method == "GET":
                return JSONResponse({"pid": os.getpid()})
            body = await request.body()
            self._cold.set(False)
            model = await self.get_model(serve.get_multiplexed_model_id())
            cold = self._cold.get()
            if direct:
                found = self._predict(model, body)
            else:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._pool, self._predict, model, body)
            return JSONResponse(found, headers={"X-Model-Cold-Start": str(cold).lower()})

        def _predict(self, model: Any, body: bytes) -> dict[str, Any]:  # noqa: ANN401
            if cores is not None and torch.get_num_threads() != cores:
                torch.set_num_threads(cores)
            return answer(model.predict(decode(body), verbose=False)[0])

    deployment: Any = Stock
    application: serve.Application = deployment.bind()
    return application


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--room", type=int, default=-1)
    parser.add_argument("--direct", action="store_true", help="predict on the event loop")
    parser.add_argument(
        "--as-documented", action="store_true", help="as in Ray's example, nothing tuned"
    )
    given = parser.parse_args()
    stop = threading.Event()
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": given.port}
        )
        cores = None if given.as_documented else len(os.sched_getaffinity(0))
        direct = given.direct or given.as_documented
        serve.run(build(given.models.resolve(), given.room, cores, direct=direct))
        stop.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main()
