"""What a replica does with a request, apart from Ray: lease, then all its pictures at once.

The cache and the streams come in from outside, so tests run it without a cluster.
"""

import functools
import time
from collections.abc import Callable

from serve_app.cache import ModelCache
from serve_app.engines import decoding
from serve_app.engines.streams import Streams
from serve_app.loading.loader import LoadedModel, PreparedFile
from serve_app.replica.batcher import MAX_DECODED_BYTES, Batcher, Pictures
from serve_app.types import PredictRequest, PredictResult


class PredictService:
    """Answers predict requests with leased models."""

    def __init__(
        self,
        cache: ModelCache[PreparedFile, LoadedModel],
        streams: Streams,
        *,
        max_image_pixels: int,
        max_decoded_bytes: int = MAX_DECODED_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_image_pixels` is checked again here: a header may lie about the body."""
        self._cache = cache
        self._clock = clock
        self._batcher = Batcher(
            streams,
            functools.partial(decoding.decode_image, max_pixels=max_image_pixels),
            decoding.decoded_bytes,
            max_decoded_bytes=max_decoded_bytes,
            clock=clock,
        )

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer one request.

        Raises:
            ServeAppError: in all the ways of serve_app.errors
        """
        deadline = self._clock() + request.timeout_s
        # The lease comes first: what waits for a load is in no queue that others wait in.
        async with self._cache.lease(request.key, timeout_s=request.timeout_s) as lease:
            model = lease.model.model
            pictures = Pictures(
                request.key, model, request.images, request.params, request.annotate, deadline
            )
            answered = await self._batcher.answer(pictures)
        load_s = lease.load_s
        waited_s = max(0.0, lease.wait_s - (load_s or 0.0))
        waited_s += max((picture.waited_s for picture in answered), default=0.0)
        return PredictResult(
            key=request.key,
            task=model.info.task,
            names=model.info.names,
            images=tuple(picture.result for picture in answered),
            cold=lease.cold,
            load_ms=None if load_s is None else load_s * 1000,
            queue_ms=1000 * waited_s,
        )

    async def aclose(self) -> None:
        """Refuse the pictures that wait and all further ones, and end the decoder threads."""
        await self._batcher.aclose()
