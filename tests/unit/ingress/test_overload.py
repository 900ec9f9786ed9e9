"""Beyond the queue: when to come again, and who is refused before the body is read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import (
    InvalidImageError,
    ModelBrokenError,
    OverloadedError,
    QueueFullError,
    ServeAppError,
)
from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.ingress.overload import Backlog
from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.settings import AppArgs, SettingsError
from tests.unit.ingress.fakes import Clock, FakeBackend, picture

URL = "/v1/models/parts/predict"


class Calls:
    """Calls of a backlog that are begun and ended by hand."""

    def __init__(self, max_wait_s: float | None = None, replicas: int = 0) -> None:
        self.clock = Clock()
        self.replicas = replicas
        self.backlog = Backlog(max_wait_s, self.clock, lambda: self.replicas)
        self._open: dict[str, list[ExitStack]] = {}

    def begin(self, count: int = 1, model: str = "hot") -> None:
        """Begin calls."""
        for _ in range(count):
            stack = ExitStack()
            stack.enter_context(self.backlog.call(model))
            self._open.setdefault(model, []).append(stack)

    def end(self, count: int = 1) -> None:
        """Answer calls of `hot`, the earliest first."""
        for _ in range(count):
            self._open["hot"].pop(0).close()

    def refuse(self, error: ServeAppError | None = None) -> float | None:
        """Have one call refused; return its Retry-After."""
        with pytest.raises(ServeAppError) as caught, self.backlog.call("hot"):
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
    assert calls.refuse() == 1.0, "there is none"
    calls.clock.now += 100.0
    calls.begin(320)
    assert calls.refuse() == pytest.approx(320 / 16, rel=0.01), "nothing is measured yet"
    calls.clock.now += 0.9
    assert calls.refuse() == pytest.approx(320 / 16, rel=0.01), "the first answer may come still"
    for _ in range(200):
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
    calls.clock.now += 0.1
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
        with calls.backlog.call("hot"):
            calls.clock.now += 1.0
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        leave()
    calls.begin(100)
    assert calls.refuse() == pytest.approx(101 / 16, rel=0.01)


# --- bounded by time ------------------------------------------------------------------------------


@pytest.fixture
def timed() -> Calls:
    """Return those of an ingress replica that answered 20 a second just now, 40 in progress."""
    calls = Calls(2.0)
    calls.begin(40)
    for _ in range(100):
        calls.clock.now += 0.05
        calls.end()
        calls.begin()
    return calls


def test_what_takes_too_long_already_is_refused(timed: Calls) -> None:
    """By the headers, and after the body where more have come meanwhile; until one ends."""
    timed.begin()
    with pytest.raises(QueueFullError, match=r"takes 2\.\d s \(max_wait_s: 2\)") as caught:
        timed.backlog.check()
    assert caught.value.retry_after_s == pytest.approx(41 / 20, rel=0.02)
    with pytest.raises(QueueFullError, match="max_wait_s"), timed.backlog.call("hot"):
        pytest.fail("it was let in")
    timed.end(2)
    timed.backlog.check()
    timed.begin()


@pytest.mark.parametrize(("answers", "shut"), [(25, True), (70, False)])
def test_calls_that_are_overtaken_by_far_wait_for_a_load(answers: int, shut: bool) -> None:
    """By more than the bound; until then they may be in front of others."""
    calls = Calls(2.02)
    calls.begin(20)
    calls.begin(15, "cold")
    for _ in range(answers):
        calls.clock.now += 0.05
        calls.end()
        calls.begin()
    calls.begin(6)
    assert calls.is_shut() == shut


@pytest.mark.parametrize(("answers", "shut"), [(70, True), (110, False)])
def test_calls_overtaken_by_their_own_model_are_stuck(answers: int, shut: bool) -> None:
    """By more than twice the bound, since calls of one model are not always taken in order."""
    calls = Calls(2.02)
    with ExitStack() as stuck:
        for _ in range(20):
            stuck.enter_context(calls.backlog.call("hot"))
        calls.begin(20)
        for _ in range(answers):
            calls.clock.now += 0.05
            calls.end()
            calls.begin()
        calls.begin()
        assert calls.is_shut() == shut


def test_calls_that_are_overtaken_by_none_are_in_the_queue() -> None:
    """However long they have waited: what is answered came before them."""
    calls = Calls(1.0)
    calls.begin(80)
    calls.clock.now += 0.01
    calls.begin(30, "next")
    for _ in range(60):
        calls.clock.now += 0.05
        calls.end()
    assert calls.is_shut()


def test_a_long_silence_leaves_the_bound_by_number(timed: Calls) -> None:
    """In a shorter one another ingress may get its answers; then there is no time to be told."""
    timed.begin()
    assert timed.is_shut()
    timed.clock.now += 3.9
    assert timed.is_shut()
    timed.clock.now += 0.2
    assert not timed.is_shut()
    timed.begin(300)


def test_without_a_bound_all_may_come() -> None:
    """The queue itself then refuses alone."""
    calls = Calls(None)
    calls.begin(300)
    for _ in range(100):
        calls.clock.now += 0.2
        calls.end()
        calls.begin()
        assert not calls.is_shut()


def test_a_few_are_never_too_many() -> None:
    """Not even where each takes seconds."""
    calls = Calls(0.5)
    calls.begin(9)
    for _ in range(30):
        calls.clock.now += 0.9
        calls.end()
        calls.begin()
    assert calls.is_shut()
    calls.end()
    assert not calls.is_shut()


def test_slow_replicas_may_have_enough_each_for_their_number_to_grow() -> None:
    """More than `target_ongoing_requests`, however long these take."""
    calls = Calls(0.5, replicas=2)
    calls.begin(41)
    for _ in range(30):
        calls.clock.now += 0.2
        calls.end()
        calls.begin()
    assert calls.is_shut()
    calls.replicas = 3
    assert not calls.is_shut()


@pytest.mark.parametrize("error", [ModelBrokenError("set aside"), InvalidImageError("cut short")])
def test_errors_say_nothing_of_how_fast_detectors_are(error: ServeAppError) -> None:
    """They come quickly: counted as answers, there would be a thousand a second."""
    calls = Calls(2.0)
    calls.begin(36)
    for _ in range(100):
        calls.clock.now += 0.05
        calls.end()
        calls.begin()
        for _ in range(50):
            calls.refuse(error)
    calls.begin(5)
    assert calls.is_shut()


_KINDS = ("begin", "answer", "fail", "leave", "full", "wait")
_STEPS = st.lists(
    st.tuples(st.sampled_from(_KINDS), st.integers(0, 5)),
    max_size=80,
)


@given(_STEPS, st.one_of(st.none(), st.floats(0.01, 10)))
def test_whatever_happens_it_counts_right(
    steps: list[tuple[str, int]], max_wait_s: float | None
) -> None:
    """What is in progress is known to the last call, and a few calls are never refused."""
    clock = Clock()
    backlog = Backlog(max_wait_s, clock)
    errors = {"fail": ModelBrokenError("no"), "leave": asyncio.CancelledError()}
    open_: list[ExitStack] = []
    for what, number in steps:
        if what == "begin":
            with suppress(QueueFullError), ExitStack() as stack:
                stack.enter_context(backlog.call(number))
                open_.append(stack.pop_all())
        elif what == "wait":
            clock.now += number / 2
        elif what == "full":
            with pytest.raises(QueueFullError) as caught, backlog.call(number):
                raise QueueFullError("full")
            assert 1 <= (caught.value.retry_after_s or 0) <= 60
        elif open_:
            _finish(open_.pop(number % len(open_)), errors.get(what))
        assert backlog.in_progress == len(open_)
    for stack in open_[8:]:
        stack.close()
    clock.now += 0.25
    backlog.check()
    for stack in open_[:8]:
        stack.close()
    assert (backlog.in_progress, backlog.models_in_progress) == (0, 0)


def _finish(stack: ExitStack, error: BaseException | None) -> None:
    if error is None:
        stack.close()
    else:
        with pytest.raises(type(error)), stack:
            raise error


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


async def test_a_long_queue_refuses_by_the_headers(
    client: httpx.AsyncClient, api: FastAPI, backend: FakeBackend
) -> None:
    """As a full one does, once enough was answered to tell; with the time to stay away."""
    calls = Calls(2.0)
    replace(api.state.services, backlog=calls.backlog).attach(api)
    assert (await client.post(URL, content=picture())).status_code == 200
    calls.begin(50)
    for _ in range(10):
        calls.clock.now += 0.05
        calls.end()
    calls.begin(1, "parts")
    answer = await client.post(URL, content=_unread())
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "3"
    assert len(backend.predicted) == 1
    calls.end(10)
    assert (await client.post(URL, content=picture())).status_code == 200


def test_the_bound_comes_from_the_settings(repository: Path, limits: IngressLimits) -> None:
    """Three seconds, or none at all."""
    registry = Registry(FolderScanner(repository))
    for max_wait_s in (1.5, None):
        api = create_api(FakeBackend(), registry, replace(limits, max_wait_s=max_wait_s))
        assert api.state.services.backlog.max_wait_s == max_wait_s
    assert IngressLimits.from_settings(AppArgs()).max_wait_s == 3.0
    assert IngressLimits.from_settings(AppArgs.parse({"max_wait_s": None})).max_wait_s is None
    for wrong in (0, -1, "nan", "inf"):
        with pytest.raises(SettingsError, match="^max_wait_s: "):
            AppArgs.parse({"max_wait_s": wrong})
