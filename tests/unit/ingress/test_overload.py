"""Beyond the queue: when to come again, and who is refused before the body is read."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI

from serve_app.errors import ModelBrokenError, OverloadedError, QueueFullError, ServeAppError
from serve_app.ingress.overload import AnswerRate, Backlog
from tests.unit.ingress.fakes import Clock, FakeBackend, picture

URL = "/v1/models/parts/predict"


def test_the_rate_is_that_of_busy_time() -> None:
    """What nobody asked for counts for nothing."""
    clock = Clock()
    rate = AnswerRate(clock)
    assert rate.per_s == 0.0
    for _ in range(20):
        rate.begin()
        clock.now += 0.1
        rate.answered()
        rate.end()
        clock.now += 60.0
    assert rate.per_s == pytest.approx(10.0, rel=0.1)


def test_the_rate_follows_what_happens_now() -> None:
    """A fleet that lost half its replicas has half the rate after some seconds."""
    clock = Clock()
    rate = AnswerRate(clock)
    rate.begin()
    for per_s in (40, 20):
        for _ in range(20 * per_s):
            clock.now += 1 / per_s
            rate.answered()
        assert rate.per_s == pytest.approx(per_s, rel=0.2)


@pytest.mark.parametrize("asked_every_s", [40.0, 1.0])
def test_a_long_silence_is_soon_forgotten(asked_every_s: float) -> None:
    """A model was loaded, say; whoever asked for the rate meanwhile changes nothing."""
    clock = Clock()
    rate = AnswerRate(clock)
    rate.begin()
    while clock.now < 40.0:
        clock.now += asked_every_s
        assert rate.per_s == 0.0
    for seconds, error in ((1, 0.5), (1, 0.25), (3, 0.1)):
        for _ in range(seconds * 100):
            clock.now += 0.01
            rate.answered()
        assert rate.per_s == pytest.approx(100, rel=error)


def test_a_silence_lowers_the_rate_by_what_it_lasts() -> None:
    """Nine seconds leave a part of it; twelve each time are the rate."""
    clock = Clock()
    rate = AnswerRate(clock)
    rate.begin()
    for _ in range(6000):
        clock.now += 0.01
        rate.answered()
    clock.now += 9.0
    assert rate.per_s == pytest.approx(100 * math.exp(-0.9), rel=0.05)
    for _ in range(20):
        clock.now += 12.0
        rate.answered()
    assert 0.05 < rate.per_s < 0.25


class Calls:
    """Calls of a backlog that are begun and ended by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.backlog = Backlog(self.clock)
        self._open: list[ExitStack] = []

    def begin(self, count: int = 1) -> None:
        """Begin calls."""
        for _ in range(count):
            stack = ExitStack()
            stack.enter_context(self.backlog.call())
            self._open.append(stack)

    def end(self, count: int = 1) -> None:
        """Answer calls."""
        for _ in range(count):
            self._open.pop().close()

    def refuse(self, error: ServeAppError | None = None) -> float | None:
        """Have one call refused; return its Retry-After."""
        with pytest.raises(ServeAppError) as caught, self.backlog.call():
            raise error or QueueFullError("full")
        return caught.value.retry_after_s

    def is_shut(self) -> bool:
        """Whether a request would be refused by its headers."""
        try:
            self.backlog.check()
        except QueueFullError:
            return True
        return False


@pytest.fixture
def calls() -> Calls:
    """Return an idle ingress replica's."""
    return Calls()


def test_retry_after_is_the_time_that_the_backlog_takes(calls: Calls) -> None:
    """Measured, and within bounds whatever was measured."""
    assert calls.refuse() == 1.0, "nothing is known yet"
    calls.begin(320)
    assert calls.refuse() == 1.0
    for _ in range(100):
        calls.clock.now += 0.05
        calls.end()
        calls.begin()
    assert calls.refuse() == pytest.approx(320 / 20, rel=0.05)
    calls.clock.now += 1000.0
    assert calls.refuse() == 60.0


def test_after_a_refusal_the_door_is_shut_until_a_call_ends(calls: Calls) -> None:
    """It opens at once with the first one."""
    calls.begin(5)
    assert not calls.is_shut()
    calls.refuse()
    assert calls.is_shut()
    with pytest.raises(QueueFullError) as caught:
        calls.backlog.check()
    assert caught.value.retry_after_s == 1.0
    calls.end()
    assert not calls.is_shut()
    calls.begin()
    assert not calls.is_shut(), "only a new refusal shuts it"


def test_the_door_opens_by_itself(calls: Calls) -> None:
    """A replica that has joined makes room although no call has ended."""
    calls.begin(5)
    calls.refuse()
    calls.clock.now += 0.2
    assert calls.is_shut()
    calls.clock.now += 0.1
    assert not calls.is_shut()


@pytest.mark.parametrize("error", [OverloadedError("no memory"), ModelBrokenError("cut short")])
def test_other_errors_shut_nothing(calls: Calls, error: ServeAppError) -> None:
    """The queue has room."""
    calls.begin(5)
    assert calls.refuse(error) == error.retry_after_s
    assert not calls.is_shut()


def test_a_call_that_is_cancelled_is_forgotten(calls: Calls) -> None:
    """A client that leaves neither counts as an answer nor stays in the backlog."""

    def leave() -> None:
        with calls.backlog.call():
            calls.clock.now += 1.0
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        leave()
    calls.begin(100)
    assert calls.backlog.retry_after_s == 1.0


# --- over HTTP ------------------------------------------------------------------------------------


async def _unread() -> AsyncIterator[bytes]:
    pytest.fail("the body was read")
    yield b""


@pytest.mark.parametrize("url", [URL, "/v1/predict?model=parts"])
async def test_a_full_queue_refuses_by_the_headers(
    client: httpx.AsyncClient, backend: FakeBackend, api: FastAPI, url: str
) -> None:
    """The first is refused by the queue, the next before its body is read, until one ends."""
    backend.delay_s = 30
    held = asyncio.create_task(client.post(URL, content=picture()))
    async with asyncio.timeout(5):
        await backend.asked.wait()
    backend.delay_s, backend.error = 0, QueueFullError("full")
    first = await client.post(url, content=picture())
    assert (first.status_code, first.json()["code"]) == (503, "overloaded")
    second = await client.post(url, content=_unread())
    assert (second.status_code, second.json()["code"]) == (503, "overloaded")
    assert second.headers["retry-after"] == "1"
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    backend.error = None
    assert (await client.post(url, content=picture())).status_code == 200
    assert api.state.services.in_flight.held_bytes == 0


async def test_a_model_set_aside_tells_when_it_is_tried_again(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A 424 has a Retry-After then, and none otherwise."""
    backend.error = ModelBrokenError("cut short", retry_after_s=4.2)
    answer = await client.post(URL, content=picture())
    assert (answer.status_code, answer.headers["retry-after"]) == (424, "5")
    backend.error = ModelBrokenError("cut short")
    answer = await client.post(URL, content=picture())
    assert "retry-after" not in answer.headers
