"""How much one request may ask for, and the clock that ends it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self, TypeVar

from serve_app.errors import DeadlineExceededError
from serve_app.settings import AppArgs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """The limits of one request. `request_timeout_s` is the longest time a client may ask for."""

    max_body_bytes: int
    max_image_pixels: int
    max_images_per_request: int
    request_timeout_s: float

    @classmethod
    def from_settings(cls, args: AppArgs) -> Self:
        """Take the limits out of the settings, which have checked them."""
        return cls(
            max_body_bytes=args.max_body_bytes,
            max_image_pixels=args.max_image_pixels,
            max_images_per_request=args.max_images_per_request,
            request_timeout_s=args.request_timeout_s,
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
