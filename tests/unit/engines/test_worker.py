"""Work in threads is never left running behind a cancelled caller."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from serve_app.engines.worker import LoaderThreads, complete, outlast, settle


@pytest.fixture
def threads() -> Iterator[LoaderThreads]:
    """One loader thread, ended after the test."""
    threads = LoaderThreads(1)
    yield threads
    threads.close()


class Gate:
    """Work that tells when it starts, and ends when it is told to."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()
        self.ended = False

    def work(self) -> str:
        """Wait for the gate."""
        self.started.set()
        self.opened.wait(10)
        self.ended = True
        return "done"


async def test_work_returns_and_raises(threads: LoaderThreads) -> None:
    """As a plain call would."""
    assert await settle(threads.submit(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await settle(threads.submit(divmod, 7, 0))


async def test_queued_work_is_dropped_when_cancelled(threads: LoaderThreads) -> None:
    """It never runs."""
    gate = Gate()
    ran: list[int] = []
    running = asyncio.create_task(settle(threads.submit(gate.work)))
    await asyncio.to_thread(gate.started.wait)
    queued = asyncio.create_task(settle(threads.submit(ran.append, 1)))
    await asyncio.sleep(0)

    queued.cancel()

    with pytest.raises(asyncio.CancelledError):
        await queued
    gate.opened.set()
    assert await running == "done"
    await settle(threads.submit(int))
    assert ran == []


async def test_running_work_is_waited_for_when_cancelled(threads: LoaderThreads) -> None:
    """However often it is cancelled: nobody may release what a thread still uses."""
    gate = Gate()
    task = asyncio.create_task(settle(threads.submit(gate.work)))
    await asyncio.to_thread(gate.started.wait)

    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.ended


async def test_failure_of_abandoned_work_is_not_reported_as_lost(threads: LoaderThreads) -> None:
    """Cancellation wins over the error of the work."""
    gate = Gate()

    def fail() -> None:
        gate.work()
        raise ValueError("late")

    task = asyncio.create_task(settle(threads.submit(fail)))
    await asyncio.to_thread(gate.started.wait)
    task.cancel()
    gate.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_completed_work_runs_although_cancelled_in_the_queue(threads: LoaderThreads) -> None:
    """Memory must be given back whatever happens to the one who asked."""
    gate = Gate()
    ran: list[int] = []
    running = asyncio.create_task(settle(threads.submit(gate.work)))
    await asyncio.to_thread(gate.started.wait)
    sure = asyncio.create_task(complete(threads.submit(ran.append, 1)))
    await asyncio.sleep(0)

    sure.cancel()
    await asyncio.sleep(0)
    gate.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await sure
    assert ran == [1]
    await running


async def test_outlasting_tells_of_a_cancellation_afterwards() -> None:
    """It is neither lost nor acted on before everything has ended."""
    futures = [asyncio.get_running_loop().create_future() for _ in range(2)]
    task = asyncio.create_task(outlast(futures))
    await asyncio.sleep(0)
    task.cancel()
    futures[0].set_exception(ValueError("nobody asks"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()

    futures[1].cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await outlast(futures)


async def test_loader_threads_keep_out_of_parallel_operators() -> None:
    """Torch uses one core in each of them."""
    threads = LoaderThreads(2)

    assert await settle(threads.submit(torch.get_num_threads)) == 1

    threads.close()
