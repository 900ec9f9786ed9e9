"""What a replica does with a request, apart from Ray: lease, decode, predict.

The cache and the engine thread come in from outside, so tests run it without a cluster.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from serve_app.cache import ModelCache
from serve_app.engines.base import EngineModel
from serve_app.engines.decoding import decode_image
from serve_app.engines.worker import EngineThread
from serve_app.loading.loader import LoadedModel, PreparedFile
from serve_app.types import ImageArray, ImageResult, PredictRequest, PredictResult

MAX_DECODED_IMAGES = 4
"""Pictures held decoded at once: the largest takes 190 MB, and the engine takes one at a time."""


class PredictService:
    """Answers predict requests with leased models on one engine thread."""

    def __init__(
        self,
        cache: ModelCache[PreparedFile, LoadedModel],
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
            image, decode_s = await loop.run_in_executor(self._decoders, self._decode, data)
            result = await self._engine_thread.run(
                lambda: model.predict(image, request.params, annotate=request.annotate)
            )
        preprocess_ms = result.speed_ms["preprocess"] + decode_s * 1000
        return replace(result, speed_ms={**result.speed_ms, "preprocess": preprocess_ms})

    def _decode(self, data: bytes) -> tuple[ImageArray, float]:
        """Return the picture and the seconds that decoding took (decoder thread)."""
        started = self._clock()
        image = decode_image(data, self._max_image_pixels)
        return image, self._clock() - started

    def close(self) -> None:
        """Stop the decoder threads; pictures not yet begun are dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
