"""A backend that answers at once with known findings, and pictures to send to it."""

import asyncio
import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from serve_app.errors import Failure
from serve_app.fleet.plan import Orders
from serve_app.types import (
    ImageResult,
    ModelKey,
    PredictRequest,
    PredictResult,
    ReplicaReport,
    ResidentModel,
    Task,
)


def picture(kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    """Return an encoded picture of (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(buffer, kind)
    return buffer.getvalue()


def detection(shape: tuple[int, int] = (48, 64), annotated: bytes | None = None) -> ImageResult:
    """Return one picture's result with two boxes."""
    return ImageResult(
        shape=shape,
        class_id=np.array([1, 0], np.int64),
        confidence=np.array([0.9, 0.5], np.float32),
        boxes=np.array([[1, 2, 30, 40], [5, 6, 7, 8]], np.float32),
        speed_ms={"preprocess": 1.0, "inference": 20.0, "postprocess": 0.5},
        annotated=annotated,
    )


def report() -> ReplicaReport:
    """Return a replica that holds parts@2."""
    model = ResidentModel("parts@2", "ready", 1000, 0, pinned=False, idle_s=1.5)
    return ReplicaReport("r1", 7, "n1", "cpu", 10_000, 1000, None, (model,))


@dataclass
class Clock:
    """A clock that goes when the test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@dataclass
class FakeBackend:
    """Records what it is asked; raises `error`, or waits `delay_s`, when one is set."""

    error: BaseException | None = None
    delay_s: float = 0.0
    cold: bool = False
    answer: Callable[[], ImageResult] = detection
    predicted: list[PredictRequest] = field(default_factory=list)
    loaded: list[ModelKey] = field(default_factory=list)
    unloaded: list[ModelKey] = field(default_factory=list)
    orders: list[Orders] = field(default_factory=list)
    failure: Failure | None = None
    cancelled: int = 0
    is_ready: bool = True
    draws: bool = True
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def _act(self) -> None:
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer with two findings in each picture."""
        self.predicted.append(request)
        self.asked.set()
        await self._act()
        images = tuple(self._image(request) for _ in request.images)
        load_ms = 12.5 if self.cold else None
        return PredictResult(
            request.key, Task.DETECT, {0: "bolt", 1: "nut"}, images, self.cold, load_ms, 3.25
        )

    def _image(self, request: PredictRequest) -> ImageResult:
        drawn = request.annotate and self.draws
        return detection(annotated=picture()) if drawn else self.answer()

    async def load(self, key: ModelKey, timeout_s: float) -> str:
        """Record the key."""
        assert timeout_s > 0
        self.loaded.append(key)
        await self._act()
        return "r1"

    async def load_on(
        self, key: ModelKey, replica_ids: Collection[str], timeout_s: float
    ) -> dict[str, Failure | None]:
        """Record the key; fail as the test wants."""
        self.loaded.append(key)
        await self._act()
        return dict.fromkeys(replica_ids, self.failure)

    async def order(self, orders: Orders) -> None:
        """Do as told."""
        await self._act()
        self.orders.append(orders)

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Record the key."""
        self.unloaded.append(key)
        await self._act()
        return 1

    async def replicas(self) -> list[ReplicaReport]:
        """Return one replica, that knows of the orders."""
        await self._act()
        pins = self.orders[-1].pins if self.orders else ()
        return [replace(report(), pins=pins)]

    async def ready(self) -> bool:
        """Tell what the test wants."""
        await self._act()
        return self.is_ready
