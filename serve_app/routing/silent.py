"""Replicas that have stopped answering, or getting on, until they do again or are gone. Pure."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from serve_app.routing.recipient import Ask

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
_ANSWER_S = 2.0
_SPARE_S = 2.0
"""What a word that a replica is late may take on its way."""


class Silent:
    """Asks each of them again and again; belongs to one event loop."""

    def __init__(
        self,
        on_return: Callable[[], None],
        *,
        pause_s: float = _PAUSE_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        """Call `on_return` whenever one has answered.

        Args:
            on_return: told after the replica is no longer among the silent ones
            pause_s: between two questions
            answer_s: how long to wait for an answer
        """
        self._on_return = on_return
        self._pause_s = pause_s
        self._answer_s = answer_s
        self._asking: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, replica_id: object) -> bool:
        return replica_id in self._asking

    def add(self, replica_id: str, ask: Ask) -> None:
        """Count a replica as silent until `ask` returns."""
        if replica_id not in self:
            logger.warning("replica %s does not answer: others take its requests", replica_id)
            self._asking[replica_id] = asyncio.create_task(self._until_back(replica_id, ask))

    def keep(self, replica_ids: Collection[str]) -> None:
        """Forget all but these: the others are gone."""
        for replica_id in self._asking.keys() - set(replica_ids):
            self._asking.pop(replica_id).cancel()

    async def _until_back(self, replica_id: str, ask: Ask) -> None:
        while True:
            if await self._answers(ask):
                break
            await asyncio.sleep(self._pause_s)
        # A cancellation that comes with the answer is lost in it (wait_for, until Python 3.12).
        if self._asking.get(replica_id) is not asyncio.current_task():
            return
        logger.warning("replica %s answers again", replica_id)
        del self._asking[replica_id]
        self._on_return()

    async def _answers(self, ask: Ask) -> bool:
        try:
            await asyncio.wait_for(ask(), self._answer_s)
        except Exception:  # late, unreachable or dead: Serve takes it away if it stays so
            return False
        return True


class Late:
    """For how long a step of each replica's engine has been late, as long as that may be true.

    A replica tells powers of two, so a step that goes on is told of again when it has taken twice
    as long. Who hears nothing by then, say since the controller is away, must not go by old news.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing told."""
        self._clock = clock
        self._told: dict[str, tuple[float, float]] = {}

    def hear(self, told: Mapping[str, float]) -> None:
        """Take what all replicas say now, in seconds; 0 for one that gets on."""
        now = self._clock()
        self._told = {id_: (s, now + 2 * s + _SPARE_S) for id_, s in told.items() if s}

    def late_s(self, replica_id: str) -> float:
        """Return for how long a replica has been late, 0 where it gets on or that is old news."""
        late_s, until = self._told.get(replica_id, (0.0, 0.0))
        return late_s if self._clock() < until else 0.0

    def forget_old(self) -> bool:
        """Forget what was not repeated in time; return whether there was such a word."""
        if not self._told:
            return False
        now = self._clock()
        told, self._told = self._told, {id_: one for id_, one in self._told.items() if now < one[1]}
        return len(self._told) < len(told)
