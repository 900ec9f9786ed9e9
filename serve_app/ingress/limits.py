"""How much one request may ask for, and the clock that ends it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from serve_app.errors import DeadlineExceededError

T = TypeVar("T")

MAX_PIXELS_OF_DECODERS = 178_956_970
"""Pillow itself refuses pictures of more pixels than this."""


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """The limits of one request. `request_timeout_s` is the longest time a client may ask for."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 64_000_000
    max_images_per_request: int = 16
    request_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if self.max_image_pixels > MAX_PIXELS_OF_DECODERS:
            raise ValueError(
                f"max_image_pixels is {self.max_image_pixels}: at most {MAX_PIXELS_OF_DECODERS} "
                "pixels can be decoded"
            )


class Deadline:
    """When one request must have been answered, on the running event loop's clock."""

    def __init__(self, timeout_s: float) -> None:
        self._started = asyncio.get_running_loop().time()
        self.timeout_s = timeout_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return asyncio.get_running_loop().time() - self._started

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return max(0.0, self.timeout_s - self.elapsed_s)

    def shorten(self, timeout_s: float) -> None:
        """Hold the request to the client's own time limit, counted from its arrival."""
        self.timeout_s = min(self.timeout_s, timeout_s)

    async def bound(self, call: Awaitable[T], what: str) -> T:
        """Await `call` for as long as there is time, then cancel it.

        Raises:
            DeadlineExceededError: it was not done in time; `what` says what was not
        """
        scope = asyncio.timeout(self.left_s)
        try:
            async with scope:
                return await call
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceededError(
                f"{what} was not done within {self.timeout_s:g} s: allow more time (timeout_s, up "
                "to the server's limit), or try again when the model is loaded"
            ) from error
