"""Streams pull their work themselves, in the right order and with the right share of the cores."""

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch

from serve_app.engines.streams import Streams, Work, default_streams, share_cores


class Source:
    """A queue of work, some of it announced only."""

    def __init__(self) -> None:
        self.queue: deque[Work] = deque()
        self.announced = 0

    def take(self) -> Work | None:
        """Return the first."""
        return self.queue.popleft() if self.queue else None

    def has_more(self) -> bool:
        """Whether there is more, or will be."""
        return len(self.queue) + self.announced > 0


class Step:
    """Work that tells who runs it with how many cores, and ends when it is told to."""

    def __init__(self, *, held: bool = False) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()
        self.ended = threading.Event()
        self.thread = ""
        self.cores = 0
        if not held:
            self.opened.set()

    def __call__(self) -> None:
        """Run."""
        self.thread = threading.current_thread().name
        self.cores = torch.get_num_threads()
        self.started.set()
        self.opened.wait(10)
        self.ended.set()


Make = Callable[[int, int], tuple[Streams, Source]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes streams over a source; they are ended after the test."""
    made: list[Streams] = []

    def build(count: int, cores: int) -> tuple[Streams, Source]:
        streams, source = Streams(count, cores), Source()
        streams.pull_from(source.take, source.has_more)
        made.append(streams)
        return streams, source

    yield build
    for streams in made:
        streams.close()


def _put(streams: Streams, source: Source, *steps: Work) -> None:
    source.queue.extend(steps)
    streams.wake()


def _until_idle(streams: Streams) -> None:
    while streams.busy:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("cores", "streams", "shares"),
    [
        (2, 2, (2, 1)),
        (2, 1, (2, 2)),
        (1, 1, (1, 1)),
        (1, 3, (1, 1)),
        (8, 4, (2, 2)),
        (7, 3, (3, 2)),
    ],
)
def test_teams_never_have_more_threads_than_cores(
    cores: int, streams: int, shares: tuple[int, int]
) -> None:
    """Of the streams with more than one core, which have a team."""
    alone, share = share_cores(cores, streams)
    assert (alone, share) == shares
    teams = [threads for threads in (alone, *[share] * (streams - 1)) if threads > 1]
    assert sum(teams) <= cores


def test_a_gpu_has_one_stream() -> None:
    """And a CPU a few."""
    assert default_streams("cuda:0", 16) == 1
    assert [default_streams("cpu", cores) for cores in (1, 2, 64)] == [1, 2, 4]


def test_work_that_is_alone_gets_all_cores(make: Make) -> None:
    """Always in stream 0, whoever worked before."""
    streams, source = make(3, 3)
    for _ in range(20):
        step = Step()
        _put(streams, source, step)
        assert step.ended.wait(10)
        _until_idle(streams)
        assert (step.thread, step.cores) == ("stream_0", 3)


def test_work_with_company_gets_a_share(make: Make) -> None:
    """Whether the company runs, waits, or is on its way."""
    streams, source = make(2, 2)
    both = [Step(held=True), Step(held=True)]
    _put(streams, source, *both)
    assert all(step.started.wait(10) for step in both)
    assert {(step.thread, step.cores) for step in both} == {("stream_0", 1), ("stream_1", 1)}
    later = Step()
    _put(streams, source, later)
    both[0].opened.set()
    assert later.ended.wait(10)
    assert later.cores == 1  # the second still runs
    both[1].opened.set()
    assert both[1].ended.wait(10)
    _until_idle(streams)

    source.announced = 1
    expecting = Step()
    _put(streams, source, expecting)
    assert expecting.ended.wait(10)
    assert expecting.cores == 1


def test_one_call_wakes_as_many_streams_as_there_is_work(make: Make) -> None:
    """Each wakes the next."""
    streams, source = make(4, 4)
    steps = [Step(held=True) for _ in range(4)]
    _put(streams, source, *steps)
    assert all(step.started.wait(10) for step in steps)
    for step in steps:
        step.opened.set()


async def test_submitted_work_goes_first(make: Make) -> None:
    """A load does not wait behind a queue of pictures."""
    streams, source = make(1, 1)
    order: list[str] = []
    busy, last = Step(held=True), Step()
    _put(streams, source, busy)
    await asyncio.to_thread(busy.started.wait)
    source.queue.extend([lambda: order.append("source"), last])
    warm_up = asyncio.create_task(streams.run(order.append, "submitted"))
    await asyncio.sleep(0)
    busy.opened.set()
    await warm_up
    await asyncio.to_thread(last.ended.wait)
    assert order == ["submitted", "source"]


async def test_run_returns_and_raises(make: Make) -> None:
    """As a plain call would."""
    streams, _ = make(2, 2)
    assert await streams.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await streams.run(divmod, 7, 0)


async def test_cancelled_work_is_dropped_or_waited_for(make: Make) -> None:
    """What waits never runs, what runs is ended first."""
    streams, _ = make(1, 1)
    ran: list[int] = []
    step = Step(held=True)
    running = asyncio.create_task(streams.run(step))
    await asyncio.to_thread(step.started.wait)
    queued = asyncio.create_task(streams.run(ran.append, 1))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    step.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await streams.run(int)
    assert ran == []


def test_a_waiting_stream_holds_nothing(make: Make) -> None:
    """Neither a model nor its pictures."""
    streams, source = make(1, 1)
    step = Step()
    gone = threading.Event()
    weakref.finalize(step, gone.set)
    ended = step.ended
    _put(streams, source, step)
    del step
    assert ended.wait(10)
    assert gone.wait(10)


def test_work_that_fails_ends_no_stream(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    streams, source = make(1, 1)
    step = Step()
    _put(streams, source, lambda: divmod(1, 0) and None, step)
    assert step.ended.wait(10)
    assert "ZeroDivisionError" in caplog.text


async def test_closing_drops_what_waits_and_ends_the_threads() -> None:
    """What runs is waited for."""
    streams = Streams(2, 2, name="closing")
    steps = [Step(held=True) for _ in range(2)]
    running = [asyncio.create_task(streams.run(step)) for step in steps]
    for step in steps:
        await asyncio.to_thread(step.started.wait)
    queued = asyncio.create_task(streams.run(int))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(streams.close))
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert not closing.done()
    for step in steps:
        step.opened.set()
    await asyncio.gather(closing, *running)
    assert not [t for t in threading.enumerate() if t.name.startswith("closing")]
    with pytest.raises(RuntimeError, match="closed"):
        await streams.run(int)
