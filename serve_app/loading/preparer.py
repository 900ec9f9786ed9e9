"""Has models prepared beside the requests, one file at a time on each node.

A replica tells which files there are and which it had to open the plain way. A process of its own,
which steps back for everything else, makes prepared weights of them; it lives only while there is
something to do, and of several replicas on a node only one runs it at a time. The others wait for
their turn and then find the work done.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from serve_app.engines.files import FileIdentity, identify
from serve_app.engines.store import ArtifactStore
from serve_app.errors import ModelBrokenError, SourceUnavailableError
from serve_app.loading.node_lock import node_lock
from serve_app.loading.prepare_process import (
    PrepareProcess,
    Refusal,
    WorkerLostError,
    prepare_process,
)
from serve_app.loading.prepare_queue import PrepareQueue
from serve_app.types import ModelFormat, ModelKey, ModelSpec

logger = logging.getLogger(__name__)

_FOLDER_SOURCE = "folder"
_SUFFIXES = {f".{model_format}" for model_format in ModelFormat}
_LOCK_FILE = ".preparer.lock"
_LONGEST_PAUSE_S = 60.0
_CHUNK = 256
"""Files looked at in one go: a hop to a thread for each of 10,000 known ones would take seconds."""
_LARGEST_RATIO = 2
"""Prepared weights over the file: fp16, in which checkpoints are mostly kept, becomes fp32."""


class Preparer:
    """Never raises into the replica: what cannot be prepared is opened the plain way.

    Belongs to one event loop; nothing runs before it is told of a file.
    """

    def __init__(
        self,
        command: Sequence[str],
        store: ArtifactStore,
        *,
        stall_limit_s: float = 120.0,
        idle_s: float = 10.0,
        pause_s: float = 1.0,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start workers by `command`; see WorkerSettings.

        stall_limit_s: how long a worker may do nothing before it is killed
        idle_s: how long a worker outlives its last file
        pause_s: time before a new worker when one was lost, doubled each time in a row
        poll_s: how often another replica's turn is looked at
        """
        self._command = command
        self._store = store
        self._stall_limit_s = stall_limit_s
        self._idle_s = idle_s
        self._pause_s = pause_s
        self._poll_s = poll_s
        self._queue = PrepareQueue(clock)
        self._keys: dict[str, ModelKey] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = store.limit_bytes <= 0
        self._losses = 0
        self._complained = False
        self._room_bytes = 0  # at least so much is left in the store; looking takes a while

    def wanted(self, specs: Iterable[ModelSpec]) -> None:
        """All versions that there are now.

        Those in a folder are prepared in this order as long as the store has room. One that is
        full is left to those that are opened: a fleet that it cannot hold would have its files
        written in turn, each removing another's.
        """
        if not self._closed:
            self._keys = {s.location: s.key for s in specs if s.source == _FOLDER_SOURCE}
            self._queue.want(self._keys)
            self._wake()

    def opened(self, path: Path) -> None:
        """A file that has just been opened the plain way: it goes first."""
        if not self._closed and path.suffix in _SUFFIXES:
            self._queue.urge(str(path))
            self._wake()

    @property
    def settled(self) -> int:
        """How many files were prepared so far, some perhaps more than once."""
        return self._queue.settled

    def prepared(self) -> frozenset[ModelKey] | None:
        """Return the versions in folders that are prepared; None where nothing ever is."""
        if self._store.limit_bytes <= 0:
            return None
        return frozenset(key for path, key in self._keys.items() if self._queue.is_settled(path))

    async def aclose(self) -> None:
        """End the worker and all waiting; nothing is prepared afterwards."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        await asyncio.to_thread(self._store.tidy)

    def _wake(self) -> None:
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="preparer")

    async def _run(self) -> None:
        while True:
            self._news.clear()
            if not self._queue:
                await self._news.wait()
            try:
                await self._work_off()
            except Exception as error:
                self._complain(error)
                self._losses += 1
                await asyncio.sleep(pause_after(self._losses, self._pause_s))

    async def _work_off(self) -> None:
        """Prepare all that is due, and what comes up until nothing has for a while."""
        if await self._next() is None:
            return
        await asyncio.to_thread(self._store.folder.mkdir, parents=True, exist_ok=True)
        async with node_lock(self._store.folder / _LOCK_FILE, poll_s=self._poll_s) as lock:
            await asyncio.to_thread(self._store.tidy)
            self._room_bytes = 0  # another replica may have used it
            async with prepare_process(
                self._command, stall_limit_s=self._stall_limit_s, keep_open=(lock,)
            ) as worker:
                while (identity := await self._next_or_idle()) is not None:
                    await self._prepare(worker, identity)

    async def _prepare(self, worker: PrepareProcess, identity: FileIdentity) -> None:
        if not worker.is_alive:  # not this file's fault
            raise WorkerLostError("the idle worker has ended")
        self._room_bytes -= _prepared_bytes(identity)
        try:
            outcome = await worker.prepare(Path(identity[0]))
        except WorkerLostError as error:
            if error.overdue:
                self._queue.refuse(identity)
                _tell_set_aside(identity, str(error))
            elif self._queue.fail(identity):
                _tell_set_aside(identity, str(error))
            raise
        self._losses, self._complained = 0, False
        if not isinstance(outcome, Refusal):
            self._queue.settle(identity)
        elif outcome.code == ModelBrokenError.code:
            self._queue.refuse(identity)
            _tell_set_aside(identity, outcome.detail)
        elif self._queue.fail(identity):
            _tell_set_aside(identity, f"{outcome.code}: {outcome.detail}")

    async def _next(self) -> FileIdentity | None:
        """Return the file whose turn it is; it stays in the queue."""
        count = 1  # mostly the first is due
        while paths := self._queue.peek(count):
            identities = await asyncio.to_thread(_identify, paths)
            for path, identity in zip(paths, identities, strict=True):
                if identity is None or not self._queue.is_due(identity):
                    self._queue.drop(path)
                elif self._queue.is_urged(path) or await self._has_room(identity):
                    return identity
                else:
                    break
            count = _CHUNK
        return None

    async def _has_room(self, identity: FileIdentity) -> bool:
        """Whether the store takes a file that is only wanted; if not, none is any more."""
        needed_bytes = _prepared_bytes(identity)
        if self._room_bytes < needed_bytes:
            self._room_bytes = await asyncio.to_thread(self._store.room_bytes)
        if self._room_bytes >= needed_bytes:
            return True
        logger.info(
            "%s holds all that prepared_bytes allows: %d models are prepared only when opened",
            self._store.folder,
            self._queue.want_no_more(),
        )
        return False

    async def _next_or_idle(self) -> FileIdentity | None:
        """Like `_next`, but waits a while for something to come up."""
        while True:
            self._news.clear()
            identity = await self._next()
            if identity is not None:
                return identity
            try:
                async with asyncio.timeout(self._idle_s):
                    await self._news.wait()
            except TimeoutError:
                return None

    def _complain(self, error: Exception) -> None:
        """Say once, until a worker answers again, that nothing can be prepared."""
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        known = isinstance(error, WorkerLostError | OSError)
        logger.log(
            level,
            "preparing models pauses: %s; they are served all the same, but open more slowly",
            error,
            exc_info=None if known else error,
        )


def pause_after(losses: int, first_s: float) -> float:
    """Return how long to wait after so many lost workers in a row, in seconds."""
    return float(min(first_s * 2 ** min(losses - 1, 32), _LONGEST_PAUSE_S))


def _prepared_bytes(identity: FileIdentity) -> int:
    """Return what a file's prepared weights may take."""
    return _LARGEST_RATIO * identity[1]


def _identify(paths: Sequence[str]) -> list[FileIdentity | None]:
    """Identify files (any thread); None for one that is gone, so that nobody needs it."""
    found: list[FileIdentity | None] = []
    for path in paths:
        try:
            found.append(identify(Path(path)))
        except SourceUnavailableError:
            found.append(None)
    return found


def _tell_set_aside(identity: FileIdentity, reason: str) -> None:
    logger.warning("%s is not prepared, it opens more slowly: %s", identity[0], reason)
