"""Replicas that have stopped answering, until they answer again or are taken away. Pure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

logger = logging.getLogger(__name__)

Ask = Callable[[], Awaitable[object]]

_PAUSE_S = 1.0
_ANSWER_S = 2.0


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
        logger.warning("replica %s answers again", replica_id)
        del self._asking[replica_id]
        self._on_return()

    async def _answers(self, ask: Ask) -> bool:
        try:
            await asyncio.wait_for(ask(), self._answer_s)
        except Exception:  # late, unreachable or dead: Serve takes it away if it stays so
            return False
        return True
