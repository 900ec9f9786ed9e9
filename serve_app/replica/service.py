"""What a replica does with a request, apart from Ray: lease, decode, predict.

Everything comes in from outside (cache, engine thread, metrics), so tests run it without a
cluster.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from serve_app.cache import Lease
from serve_app.engines.base import EngineModel
from serve_app.engines.decoding import decode_image
from serve_app.engines.worker import EngineThread
from serve_app.loading.loader import LoadedModel
from serve_app.types import ImageResult, ModelKey, PredictRequest, PredictResult

MAX_DECODED_IMAGES = 4
"""Pictures held decoded at once: the largest takes 190 MB, and the engine takes one at a time."""


class Leasing(Protocol):
    """The part of the model cache that answering a request needs."""

    def lease(
        self, key: ModelKey, *, timeout_s: float
    ) -> AbstractAsyncContextManager[Lease[LoadedModel]]:
        """Hold the model of `key` in memory, loading it first where it has to be."""


class PredictService:
    """Answers predict requests with leased models on one engine thread."""

    def __init__(
        self,
        cache: Leasing,
        engine_thread: EngineThread,
        *,
        max_image_pixels: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_image_pixels` is checked again here: a header may lie about the body."""
        self._cache = cache
        self._engine_thread = engine_thread
        self._max_image_pixels = max_image_pixels
        self._clock = clock
        self._decoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
        self._decoded = asyncio.Semaphore(MAX_DECODED_IMAGES)

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer one request.

        Raises:
            ServeAppError: in all the ways of serve_app.errors
        """
        async with self._cache.lease(request.key, timeout_s=request.timeout_s) as lease:
            leased = self._clock()
            model = lease.model.model
            images = tuple([await self._answer(model, data, request) for data in request.images])
            ended = self._clock()
        load_s = lease.load_s
        working_s = sum(sum(image.speed_ms.values()) for image in images) / 1000
        return PredictResult(
            key=request.key,
            task=model.info.task,
            names=model.info.names,
            images=images,
            cold=lease.cold,
            load_ms=None if load_s is None else load_s * 1000,
            queue_ms=1000 * max(0.0, lease.wait_s - (load_s or 0.0) + ended - leased - working_s),
        )

    async def _answer(
        self, model: EngineModel, data: bytes, request: PredictRequest
    ) -> ImageResult:
        async with self._decoded:
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(
                self._decoders, decode_image, data, self._max_image_pixels
            )
            return await self._engine_thread.run(
                lambda: model.predict(image, request.params, annotate=request.annotate)
            )

    def close(self) -> None:
        """Stop the decoder threads; pictures not yet begun are dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
