"""One model in the cache and where it stands between request and release."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from serve_app.cache.observer import EvictionReason
from serve_app.errors import ServeAppError
from serve_app.types import Footprint, ModelKey

M = TypeVar("M")


class Phase(StrEnum):
    """The stations of a model, in this order; a load may end at any of the first five."""

    QUEUED = "queued"  # for its turn to prepare
    PREPARING = "preparing"
    WAITING = "waiting"  # for room
    ADMITTED = "admitted"  # room is promised, but its victims are still closing
    OPENING = "opening"  # its bytes are reserved
    RESIDENT = "resident"
    LEAVING = "leaving"  # takes no new leases; is closed when the last one ends
    CLOSING = "closing"
    GONE = "gone"

    @property
    def state(self) -> str:
        """The coarser word that others are told."""
        if self is Phase.RESIDENT:
            return "resident"
        return "evicting" if self in _ON_THE_WAY_OUT else "loading"


_ON_THE_WAY_OUT = frozenset({Phase.LEAVING, Phase.CLOSING, Phase.GONE})


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Entry(Generic[M]):
    """One load and the model that came of it; a later load of the same key is another entry.

    holds: leases, and before the model is resident, requests that wait for it
    since: when it began to wait for room
    turn: resolved when a waiting load may go on
    settled: resolved when the load has ended, well or with `error`
    gone: resolved when the model has been closed, or may stay after all
    need: what it holds or will hold
    evicts_after_s: its load evicts only what has been idle for so many seconds, and does not wait
    victims: the models that are leaving for it
    unloads: callers of `unload` that wait for it to go
    """

    key: ModelKey
    phase: Phase = Phase.QUEUED
    holds: int = 0
    uses: int = 0
    last_used: float = 0.0
    evicts_after_s: float = 0.0
    since: float = 0.0
    turn: asyncio.Future[None] = field(default_factory=_future)
    settled: asyncio.Future[None] = field(default_factory=_future)
    gone: asyncio.Future[None] = field(default_factory=_future)
    need: Footprint = field(default_factory=lambda: Footprint(0))
    victims: "tuple[Entry[M], ...]" = ()
    model: M | None = None
    error: ServeAppError | None = None
    load_s: float = 0.0
    reason: EvictionReason = "budget"
    unloads: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no new leases any more."""
        return self.phase in _ON_THE_WAY_OUT

    @property
    def is_loading(self) -> bool:
        """Whether its load has not ended yet."""
        return self.phase.state == "loading"

    def wait_again(self, phase: Phase) -> None:
        """Go to a phase that another turn has to end."""
        self.phase = phase
        self.turn = _future()

    def stay(self) -> None:
        """Become resident again instead of leaving."""
        self.phase = Phase.RESIDENT
        self.gone.set_result(None)
        self.gone = _future()
