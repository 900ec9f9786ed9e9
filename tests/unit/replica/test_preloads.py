"""Preloads at a detector's start: what cannot be loaded is told and keeps nothing from starting."""

import math
from types import SimpleNamespace
from typing import Any

from serve_app.errors import ModelBrokenError, ServeAppError
from serve_app.replica.configuration import Preloads
from serve_app.replica.deployment import LOAD_AHEAD_TIMEOUT_S, Detector
from serve_app.types import ModelKey

A, B, C, D = (ModelKey(name, "1") for name in "abcd")


class Replica:
    """The parts of a detector that its preloads use."""

    def __init__(self, **failures: Exception) -> None:
        self.loaded: list[ModelKey] = []
        self._failures = failures
        self._config_error: str | None = None
        self._configured = False
        self._preloads = Preloads()
        self._holder = SimpleNamespace(tried=self._nothing)

    async def preload(self, *keys: ModelKey) -> str | None:
        """Preload as at a start; return what is then reported."""
        detector: Any = self
        await Detector._preload(detector, keys)
        return self._config_error

    async def _load(self, key: ModelKey, timeout_s: float, *, evicts_after_s: float) -> None:
        assert timeout_s == LOAD_AHEAD_TIMEOUT_S
        assert evicts_after_s == (0.0 if self._configured else math.inf), "at the start none leaves"
        if key.name in self._failures:
            raise self._failures[key.name]
        self.loaded.append(key)

    def _complain(self, problem: str) -> None:
        detector: Any = self
        Detector._complain(detector, problem)

    async def _nothing(self) -> None:
        """Every pin was tried."""


async def test_all_are_loaded() -> None:
    """In the order written, and nothing is told."""
    replica = Replica()
    assert await replica.preload(A, B) is None
    assert replica.loaded == [A, B]


async def test_what_cannot_be_loaded_is_told_and_harms_no_other() -> None:
    """A broken model and a defect alike, each by its name."""
    broken: ServeAppError = ModelBrokenError("cut short")
    replica = Replica(a=broken, c=ValueError("a defect"))
    assert await replica.preload(A, B, C, D) == (
        "preload: a@1 was not loaded: model_broken: cut short; "
        "preload: c@1 was not loaded: ValueError: a defect"
    )
    assert replica.loaded == [B, D]
