"""Threads for blocking work; a cancelled caller never leaves work running behind it."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


async def settle(future: Future[T]) -> T:
    """Await work in a thread; when cancelled, drop it if it still waits, else await its end.

    So whoever releases something after this returns or raises knows that no thread uses it.
    """
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if not future.cancel():
            await _outlast(waiting)
        raise


async def _outlast(waiting: "asyncio.Future[T]") -> None:
    """Wait for the end of `waiting`, through further cancellations; its outcome is dropped."""
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            continue
    if not waiting.cancelled():
        waiting.exception()  # marks it as seen


class EngineThread:
    """The one thread of a process that runs torch's parallel operators.

    A second one would start a second OpenMP team, and both would be slower.
    """

    def __init__(self, threads: int = 1) -> None:
        """Let torch use `threads` cores in this thread."""
        self._executor = ThreadPoolExecutor(
            1, "engine", functools.partial(torch.set_num_threads, threads)
        )

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(*args, **kwargs)`, run in turn in the engine thread.

        When cancelled: work still in the queue is dropped; work that runs is waited for first.
        """
        return await settle(self._executor.submit(function, *args, **kwargs))

    async def run_surely(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, but runs to its end even when cancelled: for giving memory back."""
        waiting = asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await _outlast(waiting)
            raise

    def close(self) -> None:
        """Drop queued work, wait for what runs, end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class LoaderThreads:
    """A few threads that read and prepare files, each kept out of torch's parallel operators."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(
            count, "loader", functools.partial(torch.set_num_threads, 1)
        )

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start the work; await its end with `settle`."""
        return self._executor.submit(function, *args, **kwargs)

    def close(self) -> None:
        """Drop queued work, wait for what runs, end the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)
