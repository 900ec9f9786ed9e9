"""Silent replicas are asked until they answer or are gone; old news of late ones is no news."""

import asyncio

import pytest

from serve_app.routing.recipient import Recipient, following, note
from serve_app.routing.silent import Late, Silent


async def test_one_that_answers_again_is_told_of() -> None:
    """However often it was asked in vain; until then it counts as silent."""
    outcomes: list[object] = [None, ValueError("unreachable"), 3]
    back = asyncio.Event()
    silent = Silent(back.set, pause_s=0.001, answer_s=0.001)

    async def ask() -> object:
        assert "r1" in silent
        outcome = outcomes.pop(0)
        if outcome is None:
            await asyncio.Event().wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    silent.add("r1", ask)
    assert "r1" in silent
    await asyncio.wait_for(back.wait(), 10.0)
    assert "r1" not in silent
    assert outcomes == []


async def test_those_that_are_gone_are_forgotten() -> None:
    """Their tasks end with them."""
    silent = Silent(lambda: None, answer_s=1000.0)
    ended = asyncio.Event()
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    silent.add("r1", ask)
    silent.add("r1", ask)  # known already: it is asked by one task only
    for _ in range(5):
        await asyncio.sleep(0)
    assert asked == 1
    silent.keep(["r1", "r2"])
    assert "r1" in silent
    silent.keep(["r2"])
    assert "r1" not in silent
    await asyncio.wait_for(ended.wait(), 10.0)


async def _ask() -> None:
    """Answer at once."""


async def test_a_call_is_followed_through_the_task_that_sends_it() -> None:
    """Each caller learns of its own call, and one that does not follow harms nobody."""
    first, second = (Recipient(name, _ask, lambda: None, dict) for name in ("r1", "r2"))

    async def send(recipient: Recipient) -> None:
        await asyncio.sleep(0)
        note(recipient)

    with following() as one:
        task = asyncio.create_task(send(first))
    with following() as other:
        await send(second)
    await task
    assert (one.to, other.to) == (first, second)
    note(first)
    assert other.to is second


async def test_a_call_that_is_taken_back_is_nowhere() -> None:
    """It waits for a place again."""
    with following() as sent:
        note(Recipient("r1", _ask, lambda: None, dict))
        note(None)
    assert sent.to is None


@pytest.mark.parametrize("late_s", [1.0, 8.0])
def test_a_word_that_is_not_repeated_is_forgotten(late_s: float) -> None:
    """A step that goes on is told of again when it has taken twice as long."""
    now = 100.0
    late = Late(lambda: now)
    late.hear({"a": late_s, "b": 0.0})
    assert (late.late_s("a"), late.late_s("b"), late.late_s("unknown")) == (late_s, 0.0, 0.0)
    now += 2 * late_s + 1.9
    assert late.late_s("a") == late_s
    assert not late.forget_old()
    late.hear({"a": late_s})
    now += 1.0
    assert late.late_s("a") == late_s
    now += 2 * late_s + 1.0
    assert late.late_s("a") == 0.0
    assert late.forget_old()
    assert not late.forget_old()


def test_the_last_word_counts() -> None:
    """Who gets on again says so."""
    late = Late(lambda: 0.0)
    late.hear({"a": 4.0, "b": 1.0})
    late.hear({"a": 0.0, "b": 2.0})
    assert (late.late_s("a"), late.late_s("b")) == (0.0, 2.0)
