"""What the cache needs of a loader: three steps, of which only the middle one takes memory."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from serve_app.types import Footprint, ModelKey


class Prepared(Protocol):
    """A file on local disk, verified and ready to be opened."""

    @property
    def estimate(self) -> Footprint:
        """What opening it will probably take."""


class Loaded(Protocol):
    """A model in device memory."""

    @property
    def footprint(self) -> Footprint:
        """What it really took, measured."""

    @property
    def phases_s(self) -> Mapping[str, float]:
        """Seconds that each phase of its load took."""


P = TypeVar("P", bound=Prepared)
M = TypeVar("M", bound=Loaded)


class ModelLoader(Protocol[P, M]):
    """Brings models into device memory and back. Blocking work belongs off the event loop.

    Tell a client's error by raising a ServeAppError; anything else is reported as a broken model.
    """

    async def prepare(self, key: ModelKey) -> P:
        """Fetch and verify; take no device memory."""

    async def open(self, prepared: P) -> M:
        """Take device memory. One that fails or is cancelled must have given back what it took."""

    async def close(self, model: M) -> None:
        """Give the memory back; it counts as taken until this returns."""
