"""Threads for blocking work; a cancelled caller never leaves work running behind it."""

import asyncio
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

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
            await outlast([waiting])
        raise


async def complete(future: Future[T]) -> T:
    """Await work in a thread to its end even when cancelled: for giving memory back."""
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await outlast([waiting])
        raise


async def outlast(waiting: "Iterable[asyncio.Future[Any]]") -> None:
    """Wait for the end of all, through cancellations; their outcomes are dropped.

    Raises:
        asyncio.CancelledError: the caller was cancelled meanwhile
    """
    futures, cancelled = list(waiting), False
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
    for future in futures:
        if not future.cancelled():
            future.exception()  # marks it as seen
    if cancelled:
        raise asyncio.CancelledError


class LoaderThreads:
    """A few threads that read and prepare files, each kept out of torch's parallel operators."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(
            count, "loader", functools.partial(torch.set_num_threads, 1)
        )

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start the work; await its end with `settle` or `complete`."""
        return self._executor.submit(function, *args, **kwargs)

    def close(self) -> None:
        """Drop queued work, wait for what runs, end the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)
