"""Calls that wait for a replica that has stopped answering, so that they can go elsewhere.

A process that is stopped and a machine that vanishes close no connection: a caller would wait until
its time is over. So a call that takes a while has its replica asked for a sign of life, which costs
that next to nothing and waits behind no request. Being slow is not being silent; but a replica
whose engine hangs in one step is as good as silent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import RayActorError

from serve_app.routing.recipient import Recipient, Sent, StalledError, following

logger = logging.getLogger(__name__)

T = TypeVar("T")

ASK_AFTER_S = 0.5
"""A call that takes so long has its replica asked, and again after as long."""
ANSWER_S = 2.0
"""A replica answers in milliseconds, within a second where there is more to do than cores."""


class ReplicaSilentError(Exception):
    """The replica that owes the answer gives no sign of life; the call was cancelled."""


class SilenceWatch:
    """Waits for answers; belongs to one event loop."""

    def __init__(self, ask_after_s: float = ASK_AFTER_S, answer_s: float = ANSWER_S) -> None:
        """Ask after `ask_after_s` and give a replica `answer_s`, both in seconds."""
        self._ask_after_s = ask_after_s
        self._answer_s = answer_s
        self._asked: dict[str, asyncio.Task[bool]] = {}

    async def wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call over a handle and return its answer.

        Raises:
            ReplicaSilentError: there will be none
        """
        loop = asyncio.get_running_loop()
        with following() as sent:
            answer = call()
        guards: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(None) as patience:
                # Most calls have ended by then: they cost no task.
                timer = loop.call_later(
                    self._ask_after_s,
                    lambda: guards.append(loop.create_task(self._guard(sent, patience))),
                )
                return await answer
        except TimeoutError:
            if patience.expired():
                raise ReplicaSilentError from None
            raise
        finally:
            timer.cancel()
            for guard in guards:
                guard.cancel()

    async def _guard(self, sent: Sent, patience: asyncio.Timeout) -> None:
        """Ask as long as the call takes; end its patience when nobody answers."""
        while True:
            asked = sent.to
            # Shared, so it goes on when this call ends.
            if asked is not None and not await asyncio.shield(self._answers(asked)):
                if sent.to is asked:
                    patience.reschedule(asyncio.get_running_loop().time())
                    return
                continue
            await asyncio.sleep(self._ask_after_s)

    def _answers(self, replica: Recipient) -> "asyncio.Task[bool]":
        """Return whether a replica answers; all its calls share one question at a time."""
        task = self._asked.get(replica.id)
        if task is None:
            loop = asyncio.get_running_loop()
            task = self._asked[replica.id] = loop.create_task(self._ask(replica))
            # What it said holds for as long as a call waits before it asks.
            task.add_done_callback(
                lambda _: loop.call_later(self._ask_after_s, self._asked.pop, replica.id)
            )
        return task

    async def _ask(self, replica: Recipient) -> bool:
        try:
            await asyncio.wait_for(replica.ask(), self._answer_s)
        except (TimeoutError, RayActorError, StalledError):
            replica.is_silent()
            return False
        except Exception:
            logger.exception("replica %s could not be asked for a sign of life", replica.id)
        return True
