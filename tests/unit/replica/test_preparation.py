"""What the registry knows is told to the preparer: at once, then changes, and not too often."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.registry.live import AsyncRegistry
from serve_app.replica.preparation import follow
from serve_app.types import ModelSpec


class _Told:
    """Remembers the names that it is told."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.fails = False

    def wanted(self, specs: Iterable[ModelSpec]) -> None:
        self.names.append([spec.key.name for spec in specs])
        if self.fails:
            raise RuntimeError("upset")


class _Pauses:
    """Pauses that are over when they are told to be, and the time that they make pass."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.now = 0.0
        self._allowed = asyncio.Semaphore(0)
        self._reached = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._reached.release()
        await self._allowed.acquire()
        self.now += seconds

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await self._reached.acquire()

    async def end(self) -> None:
        """End one, and wait for the next."""
        self._allowed.release()
        await self.reached()


def _add(repository: Path, name: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")


async def test_all_is_told_at_once_then_changes_each_minute(tmp_path: Path) -> None:
    """Looking is a scan of the whole folder, in every replica."""
    _add(tmp_path, "a")
    told, pauses = _Told(), _Pauses()
    registry = AsyncRegistry(Registry(FolderScanner(tmp_path), clock=lambda: pauses.now))
    following = asyncio.create_task(follow(registry, told, sleep=pauses))
    await pauses.reached()
    assert told.names == [["a"]]
    await pauses.end()
    assert told.names == [["a"]]
    _add(tmp_path, "b")
    await pauses.end()
    assert told.names == [["a"], ["a", "b"]]
    assert pauses.seconds == [60.0] * 3
    following.cancel()
    await asyncio.wait([following])
    assert following.cancelled()


async def test_an_error_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The replica serves all the same."""
    told, pauses = _Told(), _Pauses()
    told.fails = True
    registry = AsyncRegistry(Registry(FolderScanner(tmp_path), clock=lambda: pauses.now))
    following = asyncio.create_task(follow(registry, told, sleep=pauses))
    await pauses.reached()
    assert "cannot be followed" in caplog.text
    told.fails = False
    _add(tmp_path, "a")
    await pauses.end()
    assert told.names[-1] == ["a"]
    following.cancel()
    await asyncio.wait([following])
