"""Whoever waits for a silent replica goes elsewhere; whoever waits for a slow one waits."""

import asyncio
from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError

from serve_app.ingress.silence import ReplicaSilentError, SilenceWatch
from serve_app.routing.recipient import Recipient, StalledError, note

SOON_S = 0.002
NEVER_S = 1000.0


class Replica:
    """A replica that calls go to; `signs` are what it does when it is asked for a sign of life."""

    def __init__(self, sign: Callable[[], object] | None = None) -> None:
        self._sign = sign
        self.asked = 0
        self.told = 0
        self.cancelled = 0
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.recipient = Recipient("r1", self._ask, self._is_silent)

    def call(self) -> "asyncio.Task[str]":
        """Send a call, in a task of its own as Ray does; it is answered when it may be."""
        return asyncio.create_task(self._answer())

    async def _answer(self) -> str:
        note(self.recipient)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "result"

    async def _ask(self) -> None:
        self.asked += 1
        self.was_asked.set()
        if self._sign is None:
            await asyncio.Event().wait()
        else:
            self._sign()

    def _is_silent(self) -> None:
        self.told += 1


def watch(ask_after_s: float = SOON_S, answer_s: float = SOON_S) -> SilenceWatch:
    """Return one that asks soon."""
    return SilenceWatch(ask_after_s, answer_s)


async def test_a_quick_answer_costs_no_question() -> None:
    """Nor does anything of it stay."""
    replica = Replica()
    replica.may_answer.set()
    assert await watch(ask_after_s=NEVER_S).wait(replica.call) == "result"
    assert replica.asked == 0
    assert len(asyncio.all_tasks()) == 1


async def test_slow_is_not_silent() -> None:
    """As long as a replica gives signs of life, its answer is waited for."""

    def sign() -> None:
        if replica.asked == 3:
            replica.may_answer.set()

    replica = Replica(sign)
    assert await watch(answer_s=NEVER_S).wait(replica.call) == "result"
    assert (replica.asked, replica.told) == (3, 0)


async def test_all_calls_of_a_silent_replica_end_with_one_question() -> None:
    """They are cancelled there, and the router is told once."""
    replica = Replica()
    silence = watch(answer_s=0.05)
    calls = [silence.wait(replica.call) for _ in range(5)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in ended] == [ReplicaSilentError] * 5
    assert (replica.asked, replica.told, replica.cancelled) == (1, 1, 5)


@pytest.mark.parametrize("error", [ActorDiedError, StalledError])
async def test_a_replica_that_is_gone_or_stuck_is_silent(error: type[Exception]) -> None:
    """Ray may know the first before its connection breaks; the second says it itself."""

    def sign() -> None:
        raise error

    replica = Replica(sign)
    with pytest.raises(ReplicaSilentError):
        await watch().wait(replica.call)
    assert replica.told == 1


async def test_a_defect_of_the_question_takes_nothing_away() -> None:
    """What is not known is not held against the replica."""

    def sign() -> None:
        replica.may_answer.set()
        raise ValueError("a defect")

    replica = Replica(sign)
    assert await watch().wait(replica.call) == "result"
    assert replica.told == 0


async def test_a_call_that_was_sent_elsewhere_meanwhile_goes_on() -> None:
    """Ray itself sends a call on that was not accepted; the silence of the first is not its."""
    first = Replica()

    async def answer() -> str:
        note(first.recipient)
        await first.was_asked.wait()
        note(Recipient("r2", second, lambda: None))
        return await asyncio.shield(result)

    async def second() -> None:
        result.set_result("result")

    result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert await watch().wait(lambda: asyncio.create_task(answer())) == "result"
    assert first.told == 1


async def test_who_leaves_takes_no_question_along() -> None:
    """Others wait for the same answer."""
    replica = Replica()
    silence = watch(answer_s=0.05)
    first, second = (asyncio.create_task(silence.wait(replica.call)) for _ in range(2))
    await replica.was_asked.wait()
    first.cancel()
    ended = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError, ReplicaSilentError]
    assert replica.asked == 1


async def test_a_call_without_a_place_waits() -> None:
    """There is nobody to ask yet."""
    place: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(5 * SOON_S, place.set_result, "result")
    assert await watch().wait(lambda: place) == "result"


async def test_errors_and_cancellation_pass() -> None:
    """A call's own TimeoutError is not taken for silence; who leaves, leaves nothing behind."""

    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await watch().wait(late)
    replica = Replica(lambda: None)
    waiting = asyncio.create_task(watch().wait(replica.call))
    await replica.was_asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (replica.cancelled, replica.told) == (1, 0)
    assert len(asyncio.all_tasks()) == 1
