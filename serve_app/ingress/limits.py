"""How much one request may ask for, and the clock that ends it."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from serve_app.errors import DeadlineExceededError, OverloadedError
from serve_app.settings import AppArgs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """The limits of requests.

    request_timeout_s: the longest time that a client may ask for
    max_wait_s: refuse predictions while those in progress take longer; None: however long
    """

    max_body_bytes: int
    max_inflight_bytes: int
    max_image_pixels: int
    max_images_per_request: int
    request_timeout_s: float
    max_wait_s: float | None = None

    @classmethod
    def from_settings(cls, args: AppArgs) -> Self:
        """Take the limits out of the settings, which have checked them."""
        return cls(
            max_body_bytes=args.max_body_bytes,
            max_inflight_bytes=args.max_inflight_bytes,
            max_image_pixels=args.max_image_pixels,
            max_images_per_request=args.max_images_per_request,
            request_timeout_s=args.request_timeout_s,
            max_wait_s=args.max_wait_s,
        )


class InFlight:
    """Bounds the bytes that all requests in progress hold together; one for an ingress replica."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator["Holding"]:
        """Count what one request takes inside the block, and give all of it back at its end."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held_bytes -= holding.taken_bytes

    def check(self, more_bytes: int) -> None:
        """Raise OverloadedError when there is no room for so many bytes more."""
        if self.held_bytes + more_bytes > self._limit_bytes:
            raise OverloadedError(
                f"requests in progress hold {self.held_bytes} bytes already: try again later"
            )


class Holding:
    """What one request holds."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.taken_bytes = 0

    def take(self, more_bytes: int) -> None:
        """Count bytes before they are kept; raise OverloadedError when there is no room."""
        self._in_flight.check(more_bytes)
        self._in_flight.held_bytes += more_bytes
        self.taken_bytes += more_bytes


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
