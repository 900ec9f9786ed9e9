"""Lets one process of this node do something at a time."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO


@asynccontextmanager
async def node_lock(path: Path, *, poll_s: float = 0.1) -> AsyncIterator[int]:
    """Hold the lock on the file `path`; waiting does not block the event loop.

    Yields its descriptor: a child process that is given it holds the lock too, until both are done.

    Raises:
        OSError: the file cannot be made or locked
    """
    with path.open("ab") as file:
        while not _try_lock(file):  # noqa: ASYNC110 - the lock is another process's
            await asyncio.sleep(poll_s)
        yield file.fileno()  # closing the file releases the lock


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
