"""Calls that wait for a replica that has stopped answering, so that they can go elsewhere.

A process that is stopped and a machine that vanishes close no connection: a caller would wait until
its time is over. So a call that takes a while has its replica asked for a sign of life, which costs
that next to nothing and waits behind no request. Being slow is not being silent; but a replica
whose engine hangs in one step is as good as silent.

A replica is silent by comparison only: another one answers in the same time. Where none does it is
the network or this process, and a call that moved would not be better off.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ray.exceptions import RayActorError

from serve_app.routing.recipient import Recipient, Sent, StalledError, following

logger = logging.getLogger(__name__)

T = TypeVar("T")

ASK_AFTER_S = 0.5
"""A call that takes so long has its replica asked, and again after as long."""
ANSWER_S = 2.0
"""A replica answers in milliseconds, within a second where there is more to do than cores."""
_SLICES = 8
"""Of that time; what is counted is slices that were on time. A process that stands still, for its
quota of CPU or its machine's sake, finds no answers when it goes on, and must blame nobody."""


class ReplicaSilentError(Exception):
    """The replica that owes the answer gives no sign of life; the call was cancelled."""


class SilenceWatch:
    """Waits for answers; belongs to one event loop."""

    def __init__(
        self,
        ask_after_s: float = ASK_AFTER_S,
        answer_s: float = ANSWER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask after `ask_after_s` and give a replica `answer_s`, both in seconds."""
        self._ask_after_s = ask_after_s
        self._answer_s = answer_s
        self._clock = clock
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._present: set[str] | None = None

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
                # Where Serve's router has a loop of its own, to wait no more does not cancel.
                cancel = getattr(answer, "cancel", None)
                if cancel is not None:
                    cancel()
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
        """Return whether to wait for a replica; all its calls share one question at a time."""
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
        sign = asyncio.ensure_future(replica.ask())
        try:
            silent = await self._is_silent(replica, sign)
            if sign.done():
                sign.result()
        except (RayActorError, StalledError):
            silent = True
        except Exception:
            logger.exception("replica %s could not be asked for a sign of life", replica.id)
            return True
        finally:
            sign.cancel()
        if silent:
            replica.is_silent()
        return not silent

    async def _is_silent(self, replica: Recipient, sign: "asyncio.Future[object]") -> bool:
        """Wait for a sign; return whether it did not come while another replica gave one."""
        slice_s = self._answer_s / _SLICES
        present: set[str] = set()
        on_time = 0
        while on_time < _SLICES:
            began = self._clock()
            await asyncio.wait([sign], timeout=slice_s)
            if sign.done():
                return False
            on_time = on_time + 1 if self._clock() - began < 2 * slice_s else 0
            if on_time == _SLICES // 2:
                present = self._call_the_roll(replica)
        return bool(present) and replica.id not in present

    def _call_the_roll(self, replica: Recipient) -> set[str]:
        """Ask all replicas; return who answers, filled as they do. All who compare share it."""
        if self._present is None:
            present: set[str] = set()

            async def hear(id_: str, ask: Callable[[], Awaitable[object]]) -> None:
                with suppress(Exception):
                    await ask()
                    present.add(id_)

            asking = asyncio.gather(*(hear(id_, ask) for id_, ask in replica.everybody().items()))

            def end() -> None:
                asking.cancel()
                self._present = None

            # No longer: whoever finds an answer here must have been waiting when it came.
            asyncio.get_running_loop().call_later(self._answer_s / 2, end)
            self._present = present
        return self._present
