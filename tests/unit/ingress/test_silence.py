"""Whoever waits for a silent replica goes elsewhere; whoever waits for a slow one waits."""

import asyncio
from collections.abc import Callable, Collection, Generator

import pytest
from ray.exceptions import ActorDiedError

from serve_app.ingress.silence import ReplicaSilentError, SilenceWatch
from serve_app.routing.recipient import Ask, Recipient, StalledError, note

SOON_S = 0.002
NEVER_S = 1000.0


class Replica:
    """A replica that calls go to; `sign` is what it does when it is asked for a sign of life.

    Another one is there when the roll is called, if it answers.
    """

    def __init__(
        self, sign: Callable[[], object] | None = None, id_: str = "r1", other: bool = True
    ) -> None:
        self._sign = sign
        self._other = other
        self.rolls = 0
        self.asked = 0
        self.told = 0
        self.cancelled = 0
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.recipient = Recipient(id_, self._ask, self._is_silent, self._everybody)

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

    def _everybody(self) -> dict[str, Ask]:
        self.rolls += 1
        return {"silent": never, "gone": gone, "r0": at_once if self._other else never}


async def at_once() -> None:
    """Answer."""


async def never() -> None:
    """Do not answer."""
    await asyncio.Event().wait()


async def gone() -> None:
    """Break off."""
    raise ActorDiedError


def watch(
    ask_after_s: float = SOON_S,
    answer_s: float = SOON_S,
    clock: Callable[[], float] = lambda: 0.0,
) -> SilenceWatch:
    """Return one that asks soon; a test's slices of time are never late of themselves."""
    return SilenceWatch(ask_after_s, answer_s, clock)


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
    assert (replica.asked, replica.told, replica.rolls) == (3, 0, 0)


async def test_where_no_other_answers_nobody_is_silent() -> None:
    """It is the network or this process: a call stays where it is and is not repeated."""
    replica = Replica(other=False)
    waiting = asyncio.create_task(watch().wait(replica.call))
    async with asyncio.timeout(10):
        while replica.asked < 4:
            replica.was_asked.clear()
            await replica.was_asked.wait()
    assert (replica.told, replica.cancelled) == (0, 0)
    assert replica.rolls >= 3
    replica.may_answer.set()
    assert await waiting == "result"


class Clock:
    """Read before and after each slice of time; those whose numbers are given come 10 s late."""

    def __init__(self, late: Collection[int], until: int, end: Callable[[], object]) -> None:
        self._late = late
        self._until = until
        self._end = end
        self._now = 0.0
        self._read = 0

    def __call__(self) -> float:
        """Return the time; call `end` after the slice with the number `until`."""
        number, is_end = divmod(self._read, 2)
        self._read += 1
        if is_end and number in self._late:
            self._now += 10.0
        if is_end and number == self._until:
            self._end()
        return self._now


@pytest.mark.parametrize("late", [range(20), [6]])
async def test_a_process_that_stood_still_blames_nobody(late: Collection[int]) -> None:
    """Patience counts from when it runs again: the answers may be there and not be read yet."""
    replica = Replica()
    clock = Clock(late, max(late) + 5, replica.may_answer.set)
    assert await watch(clock=clock).wait(replica.call) == "result"
    assert (replica.told, replica.rolls) == (0, 1 + (len(late) == 1))


async def test_patience_ends_after_eight_slices_on_time() -> None:
    """Not later."""
    replica = Replica()
    clock = Clock([6], 6 + 9, replica.may_answer.set)
    with pytest.raises(ReplicaSilentError):
        await watch(clock=clock).wait(replica.call)


async def test_replicas_that_fall_silent_together_share_a_roll() -> None:
    """A machine that goes may have many of them, and a fleet many more to be asked."""
    replicas = [Replica(id_=id_) for id_ in ("r1", "r2", "r3")]
    silence = watch(answer_s=0.05)
    calls = [silence.wait(replica.call) for replica in replicas]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in ended] == [ReplicaSilentError] * 3
    assert sum(replica.rolls for replica in replicas) == 1


async def test_who_answers_the_roll_is_not_silent() -> None:
    """The question before may have been lost."""
    replica = Replica(id_="r0")
    waiting = asyncio.create_task(watch().wait(replica.call))
    async with asyncio.timeout(10):
        while replica.asked < 3:
            replica.was_asked.clear()
            await replica.was_asked.wait()
    assert replica.told == 0
    replica.may_answer.set()
    await waiting


async def test_an_answer_that_waiting_does_not_cancel_is_cancelled() -> None:
    """As Ray's, where its router has a loop of its own."""
    replica = Replica()

    class Answer:
        def __init__(self) -> None:
            self.cancel = (task := replica.call()).cancel
            self._task = task

        def __await__(self) -> Generator[object, None, str]:
            return asyncio.shield(self._task).__await__()

    with pytest.raises(ReplicaSilentError):
        await watch().wait(Answer)
    await asyncio.sleep(0)
    assert replica.cancelled == 1


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
    assert (replica.told, replica.rolls) == (1, 0)


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
        note(Recipient("r2", second, lambda: None, dict))
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
