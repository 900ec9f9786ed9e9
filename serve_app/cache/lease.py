"""The right to use a resident model."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.types import ModelKey

M = TypeVar("M")


@dataclass(frozen=True, slots=True, eq=False)
class Lease(Generic[M]):
    """A model that is not closed while this lease is held.

    cold: whether the request had to wait for a load, its own or one in progress
    load_s: seconds of work of that load, without waiting for a turn or for room; None if not cold
    wait_s: seconds from the request to the lease, everything included
    """

    key: ModelKey
    model: M
    cold: bool
    load_s: float | None
    wait_s: float
