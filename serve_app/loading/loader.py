"""Brings a model from its source to the device, in two steps: prepare, then open.

Preparing takes no device memory, so it may run while room is still being made; opening does. What
is cancelled or fails leaves nothing behind: threads are waited for, and what they made is closed.
The loader knows nothing of budgets, leases or the cache.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from serve_app.engines.base import Engine, EngineModel
from serve_app.engines.guard import explained, guarded
from serve_app.engines.worker import LoaderThreads, complete, settle
from serve_app.loading.sources.base import Source
from serve_app.types import Footprint, ModelFormat, ModelKey, ModelSpec

P = ParamSpec("P")
T = TypeVar("T")


class Runner(Protocol):
    """Where models may run: `serve_app.engines.streams.Streams`."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns; when cancelled, leave nothing of it running."""


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A version whose file is on the local disk and sound.

    estimate: device memory that opening it will take
    phases_s: seconds spent so far, by phase: fetch, verify
    """

    spec: ModelSpec
    path: Path
    estimate: Footprint
    phases_s: Mapping[str, float]


class LoadedModel:
    """A model open on the device and warmed up."""

    def __init__(self, model: EngineModel, phases_s: Mapping[str, float]) -> None:
        """phases_s: seconds by phase: fetch, verify, open, warm_up."""
        self.model = model
        self.phases_s = phases_s

    def __repr__(self) -> str:
        return f"<LoadedModel {self.model!r}>"

    @property
    def footprint(self) -> Footprint:
        """What the model really holds."""
        return self.model.footprint


class Loader:
    """Fetches, verifies, opens, warms up and closes models; belongs to one event loop."""

    def __init__(
        self,
        resolve: Callable[[ModelKey], Awaitable[ModelSpec]],
        sources: Mapping[str, Source],
        engines: Mapping[ModelFormat, Engine],
        streams: Runner,
        *,
        loader_threads: int = 2,
        opened_plainly: Callable[[Path], None] = lambda _path: None,
    ) -> None:
        """Take what is needed; `streams` warm models up and stay the caller's to close.

        `opened_plainly` is told of files that would have opened faster had they been prepared.
        """
        self._resolve = resolve
        self._sources = sources
        self._engines = engines
        self._streams = streams
        self._opened_plainly = opened_plainly
        self._opened: dict[Path, ModelKey] = {}
        self._verifiers = LoaderThreads(loader_threads)
        self._openers = LoaderThreads(loader_threads)  # a slow disk must not hold back an opening
        self._closers = LoaderThreads(1)  # nor may an opening hold back what makes room for it

    async def prepare(self, key: ModelKey) -> PreparedFile:
        """Fetch and verify the version; takes no device memory.

        Raises:
            ModelNotFoundError: no such version, or its source does not have it
            SourceUnavailableError: the source cannot be reached
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
            OverloadedError: there is no memory, descriptor or thread left for it
        """
        started = time.perf_counter()
        try:
            spec = await self._resolve(key)
            path = await self._sources[spec.source].fetch(spec)
        except Exception as error:
            raise explained(error) from None
        fetched = time.perf_counter()
        verify = self._engines[spec.format].verify
        estimate = await settle(self._verifiers.submit(guarded, verify, path))
        phases_s = {"fetch": fetched - started, "verify": time.perf_counter() - fetched}
        return PreparedFile(spec, path, estimate, phases_s)

    async def open(self, prepared: PreparedFile) -> LoadedModel:
        """Open the file on the device and warm it up; when cancelled or failed, nothing is left.

        Raises:
            ModelBrokenError: the file cannot be opened or run
            OverloadedError: the device has no memory left for it
        """
        started = time.perf_counter()
        opening = self._openers.submit(
            guarded, self._engines[prepared.spec.format].open, prepared.path
        )
        try:
            model = await settle(opening)
            opened = time.perf_counter()
            await self._streams.run(guarded, model.warm_up)
        except BaseException:
            await self._close_made(opening)
            raise
        warm = time.perf_counter()
        self._opened[prepared.path] = prepared.spec.key
        if not model.was_prepared:
            self._opened_plainly(prepared.path)
        phases_s = {"open": opened - started, "warm_up": warm - opened}
        return LoadedModel(model, {**prepared.phases_s, **phases_s})

    def parked(self) -> list[ModelKey]:
        """Return what is one copy in host memory away from being open, the last used last."""
        paths = [path for engine in self._engines.values() for path in engine.parked()]
        self._opened = {path: self._opened[path] for path in paths if path in self._opened}
        return list(self._opened.values())

    async def close(self, loaded: LoadedModel) -> None:
        """Give the model's memory back, even if the caller is cancelled meanwhile."""
        await complete(self._closers.submit(loaded.model.close))

    async def aclose(self) -> None:
        """End the loader's own threads."""
        for threads in (self._verifiers, self._openers, self._closers):
            threads.close()

    async def _close_made(self, opening: "Future[EngineModel]") -> None:
        """Close what an abandoned opening made, if anything."""
        if opening.cancelled() or opening.exception() is not None:
            return
        with suppress(Exception):  # the error that led here is the one to tell
            await complete(self._closers.submit(opening.result().close))
