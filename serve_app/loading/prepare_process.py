"""The replica's end of prepare_worker.py: starts the process, asks it, and surely ends it."""

import asyncio
import json
import logging
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import serve_app

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0
_PROGRESS_S = 0.05
"""Less processor time than this within the stall limit is as good as none."""


class WorkerLostError(Exception):
    """The process ended, hangs or talks nonsense; it is of no more use.

    overdue: whether it used up its processor time over the file in hand, which would happen again
    """

    def __init__(self, reason: str, *, overdue: bool = False) -> None:
        super().__init__(reason)
        self.overdue = overdue


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file was not prepared: an error's code, and its words."""

    code: str
    detail: str


class PrepareProcess:
    """A running worker. After a WorkerLostError it must not be asked again."""

    def __init__(self, process: Process, stall_limit_s: float) -> None:
        self._process = process
        self._stall_limit_s = stall_limit_s

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def prepare(self, path: Path) -> bool | Refusal:
        """Return whether anything was made, or why not.

        Raises:
            WorkerLostError: there is no answer to be had
        """
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(json.dumps({"path": str(path)}).encode() + b"\n")
            await self._process.stdin.drain()
        except OSError:
            raise WorkerLostError(await self._end()) from None
        answer = await self._answer()
        if isinstance(answer.get("made"), bool):
            return bool(answer["made"])
        return Refusal(str(answer.get("code")), str(answer.get("detail")))

    async def wait_ready(self) -> None:
        """Wait until it has imported all it needs.

        Raises:
            WorkerLostError: it cannot start
        """
        await self._answer()

    async def _answer(self) -> dict[str, Any]:
        line = await self._line()
        with suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise WorkerLostError("its worker does not keep to the protocol")

    async def _line(self) -> bytes:
        """Wait for a line for as long as the process gets anywhere.

        It runs when nothing else does, so on a busy machine a good file may take many minutes.
        """
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        used_s = self._cpu_s()
        while True:
            try:
                async with asyncio.timeout(self._stall_limit_s):
                    line = await self._process.stdout.readline()
                break
            except TimeoutError:
                before_s, used_s = used_s, self._cpu_s()
                if used_s - before_s < _PROGRESS_S and not self._is_runnable():
                    # Perhaps not the file's fault: it may have had to wait for the disk.
                    reason = f"its worker did nothing for {self._stall_limit_s:g} s"
                    raise WorkerLostError(reason) from None
            except ValueError:  # longer than any answer
                return b""
        if not line:
            reason = await self._end()
            overdue = self._process.returncode == -signal.SIGPROF
            raise WorkerLostError(reason, overdue=overdue)
        return line

    def _cpu_s(self) -> float:
        """Return the processor time that it has used so far, in seconds; 0 once it has ended."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _is_runnable(self) -> bool:
        """Whether it would go on if only it had a core."""
        try:
            return psutil.Process(self._process.pid).status() == psutil.STATUS_RUNNING
        except psutil.Error:
            return False

    async def _end(self) -> str:
        """Wait for its end, kill it if need be, and return how it ended."""
        # Killing what is ending by itself would hide its exit status: asking a Popen for that
        # collects the status before asyncio's watcher does.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._process.wait()
        _kill(self._process)
        code = await self._process.wait()
        if code == -signal.SIGPROF:
            return "its worker took too much processor time over it"
        if code < 0:
            return f"its worker was killed by {signal.Signals(-code).name}"
        return f"its worker ended with exit status {code}"


@asynccontextmanager
async def prepare_process(
    command: Sequence[str], *, stall_limit_s: float, keep_open: Sequence[int] = ()
) -> AsyncIterator[PrepareProcess]:
    """Start a worker and wait until it is ready; it is gone once this is left, however that is.

    stall_limit_s: how long it may do nothing before it counts as hanging
    keep_open: descriptors that it shares

    Raises:
        WorkerLostError: it cannot be started
    """
    process = await _start(command, keep_open)
    relaying = asyncio.create_task(_relay(process))
    try:
        worker = PrepareProcess(process, stall_limit_s)
        await worker.wait_ready()
        yield worker
    finally:
        _kill(process)
        try:
            await process.wait()
            await asyncio.wait([relaying], timeout=_LAST_WORDS_S)
        finally:
            relaying.cancel()


async def _start(command: Sequence[str], keep_open: Sequence[int]) -> Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=_environment(),
            pass_fds=tuple(keep_open),
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # However often the waiting below is cancelled: what is being started now is killed.
        starting.add_done_callback(_kill_started)
        await asyncio.wait([starting])
        raise
    except OSError as error:
        raise WorkerLostError(f"no worker can be started: {error.strerror}") from None


def _environment() -> dict[str, str]:
    package = str(Path(serve_app.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _kill_started(starting: "asyncio.Future[Process]") -> None:
    if not starting.cancelled() and starting.exception() is None:
        _kill(starting.result())


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _relay(process: Process) -> None:
    """Log what it says on stderr."""
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    while words := await process.stderr.read(2**16):
        for line in words.decode(errors="replace").splitlines():
            logger.info("prepare worker: %s", line)
