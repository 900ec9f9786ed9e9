"""The loader leaves nothing behind, whenever it is cancelled and whatever fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from serve_app.engines.base import Answer, ModelInfo, ModelInput
from serve_app.engines.factory import create_engines
from serve_app.engines.profile import BatchProfile
from serve_app.engines.streams import Streams
from serve_app.errors import (
    ModelBrokenError,
    ModelNotFoundError,
    OverloadedError,
    SourceUnavailableError,
)
from serve_app.loading.loader import Loader
from serve_app.loading.sources.folder import FolderSource
from serve_app.types import (
    Footprint,
    ImageArray,
    ModelFormat,
    ModelKey,
    ModelSpec,
    PredictParams,
    Task,
)
from tests.support.checkpoints import CheckpointFolder

KEY = ModelKey("parts", "1")


@dataclass
class SlowModel:
    """A model whose steps wait to be let through."""

    engine: "SlowEngine"
    threads: dict[str, str] = field(default_factory=dict)
    was_prepared: bool = True

    @property
    def info(self) -> ModelInfo:
        """Something."""
        return ModelInfo(Task.DETECT, {0: "part"}, (64, 64), 32)

    @property
    def footprint(self) -> Footprint:
        """More than was estimated."""
        return Footprint(150)

    def warm_up(self) -> None:
        """Wait, then fail if told so."""
        self.threads["warm_up"] = threading.current_thread().name
        self.engine.step("warm_up")

    @property
    def profile(self) -> BatchProfile:
        """Nothing was timed."""
        return BatchProfile()

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Not asked for here."""
        raise NotImplementedError

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Not asked for here."""
        raise NotImplementedError

    def close(self) -> None:
        """Be counted."""
        self.threads["close"] = threading.current_thread().name
        self.engine.step("close")
        self.engine.open_models.remove(self)


class SlowEngine:
    """An engine whose steps can be held up and made to fail."""

    def __init__(self) -> None:
        self.open_models: list[SlowModel] = []
        self.held: dict[str, threading.Event] = {}
        self.reached: dict[str, threading.Event] = {}
        self.failures: dict[str, BaseException] = {}
        self.prepared = True
        self.in_memory: tuple[Path, ...] = ()

    def hold(self, step: str) -> None:
        """Make `step` wait."""
        self.held[step] = threading.Event()
        self.reached[step] = threading.Event()

    def step(self, name: str) -> None:
        """Wait and fail as told."""
        if name in self.held:
            self.reached[name].set()
            self.held[name].wait(10)
        if name in self.failures:
            raise self.failures[name]

    def verify(self, path: Path) -> Footprint:
        """Estimate."""
        self.step("verify")
        return Footprint(path.stat().st_size)

    def prepare(self, path: Path) -> bool:
        """Make nothing."""
        return False

    def parked(self) -> tuple[Path, ...]:
        """Return what a test says."""
        return self.in_memory

    def open(self, path: Path) -> SlowModel:
        """Make a model that is counted as long as it is open."""
        assert path.exists()
        thread = threading.current_thread().name
        model = SlowModel(self, {"open": thread}, was_prepared=self.prepared)
        self.open_models.append(model)
        try:
            self.step("open")
        except BaseException:
            self.open_models.remove(model)
            raise
        return model


@pytest.fixture
def engine() -> SlowEngine:
    """An engine that does as told."""
    return SlowEngine()


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    """A version whose file is a hundred bytes."""
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(100))
    return ModelSpec(KEY, ModelFormat.PT, "folder", str(path), 100)


@pytest.fixture
def opened_plainly() -> list[Path]:
    """The files that the loader said would have opened faster prepared."""
    return []


@pytest.fixture
async def loader(
    engine: SlowEngine, spec: ModelSpec, opened_plainly: list[Path]
) -> AsyncIterator[Loader]:
    """A loader of that version."""
    streams = Streams(1, 1)

    async def resolve(key: ModelKey) -> ModelSpec:
        if key != spec.key:
            raise ModelNotFoundError(f"{key} is unknown")
        return spec

    loader = Loader(
        resolve,
        {"folder": FolderSource()},
        {ModelFormat.PT: engine},
        streams,
        opened_plainly=opened_plainly.append,
    )
    yield loader
    await loader.aclose()
    streams.close()


async def test_a_model_is_prepared_opened_and_closed(loader: Loader, engine: SlowEngine) -> None:
    """Each step in its own kind of thread, each timed."""
    prepared = await loader.prepare(KEY)
    assert prepared.estimate == Footprint(100)
    assert engine.open_models == []

    loaded = await loader.open(prepared)

    assert loaded.footprint == Footprint(150)
    assert list(loaded.phases_s) == ["fetch", "verify", "open", "warm_up"]
    assert all(seconds >= 0 for seconds in loaded.phases_s.values())
    (model,) = engine.open_models
    await loader.close(loaded)
    assert engine.open_models == []
    assert model.threads["open"].startswith("loader")
    assert model.threads["warm_up"].startswith("stream")
    assert model.threads["close"].startswith("loader")


@pytest.mark.parametrize("prepared", [True, False])
async def test_files_that_open_plainly_are_told_of(
    prepared: bool,
    loader: Loader,
    engine: SlowEngine,
    spec: ModelSpec,
    opened_plainly: list[Path],
) -> None:
    """So that they are prepared for the next time; prepared ones are not."""
    engine.prepared = prepared

    loaded = await loader.open(await loader.prepare(KEY))

    assert opened_plainly == ([] if prepared else [Path(spec.location)])
    await loader.close(loaded)


async def test_what_is_parked_is_told_by_key(
    loader: Loader, spec: ModelSpec, engine: SlowEngine
) -> None:
    """Of what this loader has opened; what is parked no more is forgotten."""
    engine.in_memory = (Path("of another"), Path(spec.location))
    assert loader.parked() == []
    await loader.close(await loader.open(await loader.prepare(KEY)))
    assert loader.parked() == [KEY]
    engine.in_memory = ()
    assert loader.parked() == []
    assert not loader._opened


async def test_unknown_and_vanished_models(
    loader: Loader, spec: ModelSpec, engine: SlowEngine
) -> None:
    """The catalog's and the source's errors pass through."""
    with pytest.raises(ModelNotFoundError):
        await loader.prepare(ModelKey("other", "1"))
    await asyncio.to_thread(Path(spec.location).unlink)
    with pytest.raises(SourceUnavailableError):
        await loader.prepare(KEY)
    assert engine.open_models == []


async def test_no_thread_to_fetch_with_is_overload(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the model."""

    async def fetch(_self: FolderSource, _spec: ModelSpec) -> Path:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(FolderSource, "fetch", fetch)
    with pytest.raises(OverloadedError):
        await loader.prepare(KEY)


@pytest.mark.parametrize("step", ["verify", "open", "warm_up"])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (RuntimeError("weird tensor"), ModelBrokenError),
        (ModelBrokenError("known"), ModelBrokenError),
        (MemoryError(), OverloadedError),
        (torch.cuda.OutOfMemoryError(), OverloadedError),
    ],
)
async def test_failures_become_errors_that_clients_understand(
    step: str,
    failure: BaseException,
    error: type[Exception],
    loader: Loader,
    engine: SlowEngine,
) -> None:
    """And leave nothing open."""
    engine.failures[step] = failure

    with pytest.raises(error):
        await loader.open(await loader.prepare(KEY))

    assert engine.open_models == []


@pytest.mark.parametrize("step", ["open", "warm_up"])
@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_opening_leaves_nothing(
    step: str, times: int, loader: Loader, engine: SlowEngine
) -> None:
    """What the thread produces after the cancellation is closed, not leaked."""
    engine.hold(step)
    prepared = await loader.prepare(KEY)
    task = asyncio.create_task(loader.open(prepared))
    await asyncio.to_thread(engine.reached[step].wait)

    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    engine.held[step].set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.open_models == []


async def test_opening_cancelled_in_the_queue_never_starts(
    loader: Loader, engine: SlowEngine
) -> None:
    """Both loader threads are busy; the third waits and is dropped."""
    engine.hold("open")
    prepared = await loader.prepare(KEY)
    tasks = [asyncio.create_task(loader.open(prepared)) for _ in range(3)]
    await asyncio.to_thread(engine.reached["open"].wait)

    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]

    engine.held["open"].set()
    for loaded in await asyncio.gather(*tasks[:2]):
        await loader.close(loaded)
    assert engine.open_models == []


async def test_closing_happens_even_when_cancelled(loader: Loader, engine: SlowEngine) -> None:
    """The closing task is cancelled while another close is running."""
    first, second = [await loader.open(await loader.prepare(KEY)) for _ in range(2)]
    engine.hold("close")
    running = asyncio.create_task(loader.close(first))
    await asyncio.to_thread(engine.reached["close"].wait)
    closing = asyncio.create_task(loader.close(second))
    await asyncio.sleep(0)

    closing.cancel()
    engine.held["close"].set()

    with pytest.raises(asyncio.CancelledError):
        await closing
    await running
    assert engine.open_models == []


async def test_a_close_waits_for_no_opening_and_no_warm_up(
    loader: Loader, engine: SlowEngine
) -> None:
    """It makes the room that they may be waiting for."""
    loaded = await loader.open(await loader.prepare(KEY))
    prepared = await loader.prepare(KEY)
    engine.hold("open")
    opening = [asyncio.create_task(loader.open(prepared)) for _ in range(2)]
    await asyncio.to_thread(engine.reached["open"].wait)

    await loader.close(loaded)

    assert loaded.model not in engine.open_models
    engine.hold("warm_up")
    engine.held["open"].set()
    await asyncio.to_thread(engine.reached["warm_up"].wait)
    engine.held["warm_up"].set()
    for other in await asyncio.gather(*opening):
        await loader.close(other)


async def test_a_real_checkpoint_is_loaded(checkpoints: CheckpointFolder) -> None:
    """From file to answer, through the real engines."""
    path = checkpoints("tiny-detect")
    spec = ModelSpec(KEY, ModelFormat.PT, "folder", str(path))
    streams = Streams(1, 1)

    async def resolve(_: ModelKey) -> ModelSpec:
        return spec

    loader = Loader(
        resolve, {"folder": FolderSource()}, create_engines("cpu", threads=1, streams=1), streams
    )

    prepared = await loader.prepare(KEY)
    loaded = await loader.open(prepared)

    assert loaded.footprint.own_bytes == prepared.estimate.own_bytes
    assert "tiny" not in repr(loaded)
    await loader.close(loaded)
    await loader.aclose()
    streams.close()
