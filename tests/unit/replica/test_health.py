"""A replica whose engine hangs or whose device failed makes way; a bad model changes nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import torch

from serve_app.engines.base import ModelInput
from serve_app.engines.streams import Streams
from serve_app.engines.watch import Watch
from serve_app.errors import DeviceFailedError, ModelBrokenError, ReplicaFailingError
from serve_app.replica.batcher import Batcher, Pictures
from serve_app.replica.health import Health, UnhealthyError
from serve_app.types import ImageArray, ModelKey, PredictParams
from tests.unit.cache.fakes import FakeClock
from tests.unit.replica.fakes import FakeModel, decode, decoded_bytes, picture

KEY = ModelKey("m", "1")


class Bench:
    """Health over a watch whose clock is set; leaving is recorded."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.watch = Watch(self.clock)
        self.left = 0
        self.health = self.over(self.watch)

    def over(self, watch: Watch) -> Health:
        """Return health over another watch."""
        return Health(watch, stuck_after_s=30.0, leave=self._leave, leave_after_s=0.0)

    def _leave(self) -> None:
        self.left += 1


@pytest.fixture
def bench() -> Bench:
    """Return a healthy replica's."""
    return Bench()


async def _answer(result: str = "answer") -> str:
    await asyncio.sleep(0)
    return result


async def _for_ever() -> str:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def test_work_goes_through_while_all_is_well(bench: Bench) -> None:
    """Answers and errors alike."""

    async def fail() -> None:
        raise ModelBrokenError("cut short")

    bench.health.check()
    assert await bench.health.run(_answer()) == "answer"
    with pytest.raises(ModelBrokenError):
        await bench.health.run(fail())
    bench.health.saw(ModelBrokenError("cut short"))
    bench.health.check()
    assert bench.health.reason is None


async def test_a_stuck_step_fails_the_check(bench: Bench) -> None:
    """Who waits is handed on, who comes is not begun, and the process ends soon."""
    waiting = asyncio.create_task(bench.health.run(_for_ever()))
    await asyncio.sleep(0)
    with bench.watch.step("a pass"):
        bench.clock.advance(29.0)
        bench.health.check()
        bench.clock.advance(2.0)
        with pytest.raises(UnhealthyError, match="stuck: a pass has been running for 31 s"):
            bench.health.check()
    with pytest.raises(DeviceFailedError, match="being replaced: the engine is stuck"):
        await waiting
    begun = []

    async def work() -> None:
        begun.append(1)

    with pytest.raises(ReplicaFailingError):
        await bench.health.run(work())
    assert begun == []
    with pytest.raises(UnhealthyError):
        bench.health.check()  # for good
    await _until(lambda: bench.left > 0)
    assert bench.left == 1


async def test_a_device_error_fails_it_at_once(bench: Bench) -> None:
    """Others that wait are handed on, too."""
    waiting = asyncio.create_task(bench.health.run(_for_ever()))
    await asyncio.sleep(0)
    bench.health.saw(DeviceFailedError("the device failed"))
    with pytest.raises(DeviceFailedError):
        await waiting
    with pytest.raises(UnhealthyError, match="the device failed"):
        bench.health.check()


async def test_who_is_cancelled_waits_for_the_end_of_the_work(bench: Bench) -> None:
    """So a lease never ends under running work, as long as the replica is well."""
    ending = asyncio.Event()

    async def work() -> None:
        try:
            await _for_ever()
        finally:
            await ending.wait()

    task = asyncio.create_task(bench.health.run(work()))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    ending.set()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- with a real engine's threads ----------------------------------------------------------------


class Engine:
    """A batcher over one stream whose watch has a clock of its own."""

    def __init__(self, clock: FakeClock) -> None:
        self.streams = Streams(1, 1)
        self.streams.watch = Watch(clock)
        self.batcher = Batcher(self.streams, decode, decoded_bytes)

    async def renewed(self, decode: Callable[[bytes], ImageArray]) -> Batcher:
        """Return a batcher that decodes in another way; the present one is closed."""
        await self.batcher.aclose()
        return Batcher(self.streams, decode, decoded_bytes)

    async def ask(self, model: FakeModel, number: int = 1) -> object:
        """Answer one picture."""
        deadline = asyncio.get_running_loop().time() + 60
        pictures = Pictures(KEY, model, (picture(number),), PredictParams(), False, deadline)
        return await self.batcher.answer(pictures)


class HangingModel(FakeModel):
    """Its preprocessing waits for an event."""

    def __init__(self, held: threading.Event) -> None:
        super().__init__()
        self.begun = threading.Event()
        self._held = held

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Wait, then do it."""
        self.begun.set()
        self._held.wait(10)
        return super().preprocess(image, params, annotate=annotate)


@pytest.fixture
async def engine(bench: Bench) -> AsyncIterator[Engine]:
    """Return an engine that ends after the test."""
    engine = Engine(bench.clock)
    bench.health = bench.over(engine.streams.watch)
    yield engine
    await engine.batcher.aclose()
    await asyncio.to_thread(engine.streams.close)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a thread brings it about
            await asyncio.sleep(0.001)


async def test_a_pass_that_hangs_fails_the_check(bench: Bench, engine: Engine) -> None:
    """The thread is held by an event, as a lost kernel would hold it."""
    model = FakeModel()
    model.opened = threading.Event()
    hanging = asyncio.create_task(bench.health.run(engine.ask(model)))
    await _until(lambda: model.running == 1)
    bench.health.check()
    bench.clock.advance(31.0)
    with pytest.raises(UnhealthyError, match="a pass has been running"):
        bench.health.check()
    with pytest.raises(DeviceFailedError):
        await hanging  # while the thread still hangs
    assert model.running == 1
    model.opened.set()


async def test_a_decode_fails_no_check_however_long_it_takes(bench: Bench, engine: Engine) -> None:
    """Its bytes are a client's, who could end one replica after another; its end comes."""
    held, begun = threading.Event(), threading.Event()

    def decode_slowly(data: bytes) -> ImageArray:
        begun.set()
        held.wait(10)
        return decode(data)

    engine.batcher = await engine.renewed(decode_slowly)
    asking = asyncio.create_task(bench.health.run(engine.ask(FakeModel())))
    await _until(begun.is_set)
    bench.clock.advance(1000.0)
    bench.health.check()
    held.set()
    await asking
    bench.health.check()


async def test_a_preprocessing_that_hangs_fails_the_check(bench: Bench, engine: Engine) -> None:
    """It ends on the device."""
    held = threading.Event()
    model = HangingModel(held)
    hanging = asyncio.create_task(bench.health.run(engine.ask(model)))
    await _until(model.begun.is_set)
    bench.clock.advance(31.0)
    with pytest.raises(UnhealthyError, match="a preprocessing has been running"):
        bench.health.check()
    with pytest.raises(DeviceFailedError):
        await hanging
    held.set()


async def test_a_warm_up_that_hangs_fails_the_check_later(bench: Bench, engine: Engine) -> None:
    """First passes compile; nobody knows for how long."""
    held = threading.Event()
    warming = asyncio.create_task(engine.streams.run(held.wait, 10))
    await _until(lambda: engine.streams.busy == 1)
    bench.clock.advance(100.0)
    bench.health.check()
    bench.clock.advance(30.0)
    with pytest.raises(UnhealthyError, match="a warm-up"):
        bench.health.check()
    held.set()
    await warming


async def test_a_cuda_error_in_a_pass_is_the_devices(engine: Engine) -> None:
    """Whatever batch it was in, nobody is told that the model is broken, and no input is rerun."""
    model = FakeModel(seconds=(0.01, 0.011))

    def fail(_: list[int]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model.breaks = fail
    model.opened = threading.Event()
    first = asyncio.create_task(engine.ask(model, 1))
    await _until(lambda: model.running == 1)
    others = [asyncio.create_task(engine.ask(model, number)) for number in (2, 3)]
    await _until(lambda: engine.batcher.ready == 2)
    model.opened.set()
    for task in (first, *others):
        with pytest.raises(DeviceFailedError):
            await task
    assert [sorted(batch) for batch in model.batches] == [[1], [2, 3]]
