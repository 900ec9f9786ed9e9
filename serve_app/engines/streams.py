"""The threads that run models: each fetches its next piece of work itself as soon as it is free.

So an engine never idles while the event loop is late. A piece of work that is alone gets all
cores; as soon as there is more, each stream works with its share.
"""

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

import torch

from serve_app.engines.watch import WARM_UP_S, Watch
from serve_app.engines.worker import settle

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Work = Callable[[], None]
_MOST_STREAMS = 4


def default_streams(device: str, cores: int) -> int:
    """Return how many streams a device is best run by.

    On the CPU, several streams of one core each beat one stream of all cores, since small
    operators do not spread well. A GPU spreads them itself.
    """
    return min(cores, _MOST_STREAMS) if device == "cpu" else 1


def share_cores(cores: int, streams: int) -> tuple[int, int]:
    """Return the cores of stream 0 when it works alone, and of each stream when several work.

    A stream with more than one core has a team of OpenMP threads, which stays. Teams that
    together have more threads than there are cores stop spinning, which halves the speed: so only
    stream 0 has a team, or all teams together fit.
    """
    share = max(1, cores // streams)
    return (cores if share == 1 else cores - (streams - 1) * share), share


class Streams:
    """A few threads that pull work: what `run` is asked for first, then what the source has."""

    def __init__(self, count: int, cores: int, *, name: str = "stream") -> None:
        """Start `count` threads, which use `cores` cores together."""
        self.count = count
        self.watch = Watch()
        """Of what the streams run."""
        self._alone_cores, self._share = share_cores(cores, count)
        self._lock = threading.Lock()
        self._wakers = [threading.Condition(self._lock) for _ in range(count)]
        self._asleep: set[int] = set()
        self._busy: set[int] = set()
        self._submitted: deque[tuple[Work, Future[object]]] = deque()
        self._take: Callable[[], Work | None] = _nothing
        self._has_more: Callable[[], bool] = bool
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), name=f"{name}_{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """How many streams are at work."""
        return len(self._busy)

    def pull_from(self, take: Callable[[], Work | None], has_more: Callable[[], bool]) -> None:
        """Set the source of work; both are called in any stream and must neither block nor raise.

        Args:
            take: returns the next piece of work, None when there is none
            has_more: whether more is waiting, or on its way to the streams
        """
        with self._lock:
            self._take, self._has_more = take, has_more
        self.wake()

    def wake(self) -> None:
        """Tell that the source may have work (any thread)."""
        with self._lock:
            self._wake_one()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(*args, **kwargs)`, run in a stream before anything of the source.

        When cancelled: work still in the queue is dropped; work that runs is waited for first.
        """
        return await settle(self.submit(function, *args, **kwargs))

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue `function(*args, **kwargs)` before anything of the source.

        Raises:
            RuntimeError: the streams are closed
        """
        future: Future[T] = Future()
        work = functools.partial(self._fulfil, future, functools.partial(function, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("the streams are closed")
            self._submitted.append((work, future))  # type: ignore[arg-type]  # read for cancelling
            self._wake_one()
        return future

    def close(self) -> None:
        """Drop what was submitted and waits, wait for what runs, end the threads."""
        with self._lock:
            self._closed = True
            dropped = [future for _, future in self._submitted]
            self._submitted.clear()
            for waker in self._wakers:
                waker.notify_all()
        for future in dropped:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _serve(self, index: int) -> None:
        torch.set_num_threads(self._share)
        while (piece := self._next(index)) is not None:
            work, cores = piece
            torch.set_num_threads(cores)
            try:
                work()
            except Exception:
                logger.exception("a stream's work failed")
            del piece, work  # a stream that waits must not hold a model and its pictures

    def _next(self, index: int) -> tuple[Work, int] | None:
        """Return the next piece of work and the cores to run it with; None at the end."""
        with self._lock:
            self._busy.discard(index)
            while not self._closed:
                work = self._pick(index)
                if work is not None:
                    more = bool(self._submitted) or self._has_more()
                    alone = index == 0 and not self._busy and not more
                    self._busy.add(index)
                    if more:
                        self._wake_one()
                    return work, self._alone_cores if alone else self._share
                self._asleep.add(index)
                self._wakers[index].wait()
                self._asleep.discard(index)
        return None

    def _pick(self, index: int) -> Work | None:
        if index and 0 not in self._busy:
            return None  # stream 0 is awake for it, or will be: only it may use all cores
        if self._submitted:
            return self._submitted.popleft()[0]
        return self._take()

    def _fulfil(self, future: Future[T], function: Callable[[], T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self.watch.step("a warm-up", WARM_UP_S):
                result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _wake_one(self) -> None:
        """Wake the first stream that sleeps; it wakes the next one if there is more (locked)."""
        if self._asleep:
            index = min(self._asleep)
            self._asleep.discard(index)
            self._wakers[index].notify()


def _nothing() -> Work | None:
    return None
