"""Whether this replica can still answer; once it cannot, it says so and makes way.

A pass that never ends, or a device that has failed, heals in no process: Ray has to start another.
From the moment it is known, requests are handed back to be answered elsewhere, the health check
fails, and soon the process ends: a replica that refuses everything at once would look like the
least busy one to every router. A model that cannot be loaded or run is no reason for any of this.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from serve_app.engines.watch import Watch
from serve_app.errors import DeviceFailedError, ReplicaFailingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEAVE_AFTER_S = 1.0
"""Enough for the answers to those who wait."""


class UnhealthyError(RuntimeError):
    """What Ray's health check is told; the message says why."""


def end_process() -> None:
    """End this process at once, whatever its threads hang in."""
    os._exit(1)


class Health:
    """Watches one replica's engine; belongs to one event loop."""

    def __init__(
        self,
        watch: Watch,
        *,
        stuck_after_s: float,
        leave: Callable[[], None] = end_process,
        leave_after_s: float = LEAVE_AFTER_S,
    ) -> None:
        """Be healthy.

        Args:
            watch: knows what runs
            stuck_after_s: a step that runs for longer, and much longer than expected, never ends
            leave: ends the process
            leave_after_s: how long after it has failed
        """
        self._watch = watch
        self._stuck_after_s = stuck_after_s
        self._leave = leave
        self._leave_after_s = leave_after_s
        self._failed: asyncio.Future[str] | None = None

    @property
    def reason(self) -> str | None:
        """Why this replica has to be replaced; None while it is well."""
        return self._failed.result() if self._failed is not None and self._failed.done() else None

    def check(self) -> None:
        """Look at what runs now.

        Raises:
            UnhealthyError: this replica has to be replaced
        """
        stuck = self._watch.overdue(self._stuck_after_s)
        if stuck is not None:
            self._fail(f"the engine is stuck: {stuck}")
        if self.reason is not None:
            raise UnhealthyError(self.reason)

    def saw(self, error: BaseException) -> None:
        """Look at what a request ended in."""
        if isinstance(error, DeviceFailedError):
            self._fail(error.detail)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, as long as this replica is well.

        When cancelled, it waits for the end of `work`, which is cancelled too.

        Raises:
            ReplicaFailingError: it had failed before; nothing was done
            DeviceFailedError: it failed meanwhile; `work` is cancelled and not waited for
        """
        failed = self._when_failed()
        if failed.done():
            work.close()
            raise ReplicaFailingError(f"this replica is being replaced: {failed.result()}")
        task = asyncio.create_task(work)
        ends: list[asyncio.Future[Any]] = [task, failed]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raise
        if task.done():
            return task.result()
        task.add_done_callback(_forget)
        task.cancel()
        raise DeviceFailedError(f"this replica is being replaced: {failed.result()}")

    def _when_failed(self) -> "asyncio.Future[str]":
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed

    def _fail(self, reason: str) -> None:
        failed = self._when_failed()
        if failed.done():
            return
        logger.error("this replica has to be replaced: %s", reason)
        failed.set_result(reason)
        asyncio.get_running_loop().call_later(self._leave_after_s, self._leave)


def _forget(task: "asyncio.Task[Any]") -> None:
    """Mark the outcome of an abandoned task as seen."""
    if not task.cancelled():
        task.exception()
