"""serve_app with an engine whose passes hang on demand, for the fault `stuck`.

`build` is an import path for Serve. Detector, batcher, health check and models are serve_app's own;
only the engine that opens checkpoints stands behind one that can be told to hang.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from ray.serve import Application

from benchmarks.faults.trigger import trigger
from serve_app import app
from serve_app.engines.base import Answer, ModelInput
from serve_app.engines.factory import create_engines
from serve_app.replica.deployment import Detector
from serve_app.settings import AppArgs
from serve_app.types import ModelFormat


class HangingModel:
    """A model whose passes never end once a file is there; all else is the model's own."""

    def __init__(self, model: Any, hangs: Callable[[], bool]) -> None:  # noqa: ANN401
        self._model = model
        self._hangs = hangs

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._model, name)

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Run the model, or wait for ever, as a kernel that never ends would."""
        if self._hangs():
            threading.Event().wait()
        answers: list[Answer] = self._model.predict(inputs)
        return answers


class HangingEngine:
    """An engine that opens such models."""

    def __init__(self, engine: Any, hangs: Callable[[], bool]) -> None:  # noqa: ANN401
        self._engine = engine
        self._hangs = hangs

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._engine, name)

    def open(self, path: Path) -> HangingModel:
        """Open a model."""
        return HangingModel(self._engine.open(path), self._hangs)


class HangingDetector(Detector):
    """The Detector over such engines."""

    def __init__(self, args: AppArgs) -> None:
        hangs = trigger(args.cache_dir, os.getpid()).exists

        def engines(*given: Any, **named: Any) -> Mapping[ModelFormat, Any]:  # noqa: ANN401
            made = create_engines(*given, **named)
            return {kind: HangingEngine(engine, hangs) for kind, engine in made.items()}

        with mock.patch("serve_app.replica.deployment.create_engines", engines):
            super().__init__(args)


def build(args: AppArgs) -> Application:
    """Build the application as serve_app does, with this detector."""
    with mock.patch.object(app, "Detector", HangingDetector):
        return app.build(args)
