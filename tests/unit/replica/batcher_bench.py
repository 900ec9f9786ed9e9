"""A batcher with its streams, on a clock that stands still."""

import asyncio
from dataclasses import dataclass, field

from serve_app.engines.streams import Streams
from serve_app.replica.batcher import Answered, Batcher, Pictures
from serve_app.types import ModelKey, PredictParams
from tests.unit.replica.fakes import FakeModel, decode, decoded_bytes, picture, until


@dataclass
class Clock:
    """Time that stands still unless it is moved."""

    now: float = 100.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@dataclass
class Bench:
    """A batcher and its streams."""

    clock: Clock = field(default_factory=Clock)
    batcher: Batcher = field(init=False)
    streams: Streams = field(init=False)

    def start(self, streams: int = 1, max_bytes: int = 10**9) -> Batcher:
        """Make them."""
        self.streams = Streams(streams, 1)
        self.batcher = Batcher(
            self.streams, decode, decoded_bytes, max_decoded_bytes=max_bytes, clock=self.clock
        )
        return self.batcher

    def ask(
        self,
        model: FakeModel,
        *images: bytes,
        left_s: float = 1e6,
        imgsz: tuple[int, int] | None = None,
        annotate: bool = False,
    ) -> "asyncio.Task[list[Answered]]":
        """Send a request."""
        key, params = ModelKey(model.name, "1"), PredictParams(imgsz=imgsz)
        pictures = Pictures(key, model, images, params, annotate, self.clock() + left_s)
        return asyncio.create_task(self.batcher.answer(pictures))

    async def until_ready(self, count: int) -> None:
        """Wait until so many pictures wait for a stream, and no other is on its way."""
        await asyncio.sleep(0)
        await asyncio.to_thread(
            until, lambda: self.batcher.ready == count and self.batcher.undecoded == 0
        )


def numbers(answered: list[Answered]) -> list[int]:
    """Return what was found: the pictures' numbers."""
    return [int(one.result.class_id[0]) for one in answered]


async def keep_busy(bench: Bench, model: FakeModel) -> "asyncio.Task[list[Answered]]":
    """Have a stream held up in a model that takes a picture numbered 99."""
    model.opened.clear()
    task = bench.ask(model, picture(99))
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: model.running == 1)
    return task
