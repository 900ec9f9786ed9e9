"""A model manager behind FastAPI: an OrderedDict of `YOLO(path)`, least recently used out first.

    python -m benchmarks.servers.article_manager --models FOLDER --port P [--room N]

One lock guards the dictionary and with it every load; predict runs in FastAPI's thread pool. This
is what articles on serving many models propose.
"""

import argparse
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse
from ultralytics.models import YOLO

from benchmarks.fleet import model_path
from benchmarks.servers.answers import answer, decode


class ModelManager:
    """At most `room` models in memory; None for all that are asked for."""

    def __init__(self, models: Path, room: int | None) -> None:
        """Load from `models` what is asked for."""
        self._models = models
        self._room = room
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str) -> tuple[Any, bool]:
        """Return a model, and whether it had to be loaded."""
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name], False
            if self._room is not None and len(self._loaded) >= self._room:
                self._loaded.popitem(last=False)
            self._loaded[name] = YOLO(str(model_path(self._models, name)))
            return self._loaded[name], True


def build(manager: ModelManager) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.get("/health/ready")
    def ready() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.post("/v1/models/{name}/predict")
    def predict(name: str, body: Annotated[bytes, Body(media_type="image/jpeg")]) -> JSONResponse:
        model, cold = manager.get(name)
        found = answer(model.predict(decode(body), verbose=False)[0])
        return JSONResponse(found, headers={"X-Model-Cold-Start": str(cold).lower()})

    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--room", type=int)
    given = parser.parse_args()
    app = build(ModelManager(given.models, given.room))
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
