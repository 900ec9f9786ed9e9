"""Parked weights share one block of host memory, whatever comes and goes in whatever order."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from serve_app.engines.arena import ALIGNMENT, HostArena, Span, Spans

UNIT = ALIGNMENT


def block_of(key: str, units: int) -> torch.Tensor:
    """Return bytes that tell whose they are."""
    return torch.full((units * UNIT,), hash(key) % 251, dtype=torch.uint8)


def span(start: int, end: int) -> Span:
    """Return a span given in units of the alignment."""
    return Span(start * UNIT, end * UNIT)


class SpansMachine(RuleBasedStateMachine):
    """Takes and frees spans in any order, beside a plain map of which unit is whose."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.spans = Spans(40 * UNIT + 17)
        self.live: list[Span] = []

    @rule(target=taken, nbytes=st.integers(0, 12 * UNIT))
    def take(self, nbytes: int) -> object:
        """What is found is free, aligned and large enough; None only if there is no such hole."""
        found = self.spans.find(nbytes)
        if found is None:
            assert longest_hole(self.live, 40) * UNIT < max(nbytes, 1)  # no bytes take a unit too
            return multiple()
        assert len(found) >= max(nbytes, 1)
        assert len(found) - max(nbytes, 1) < UNIT
        self.spans.take(found)
        self.live.append(found)
        return found

    @rule(freed=consumes(taken))
    def free(self, freed: Span) -> None:
        """Each span is freed once."""
        self.spans.free(freed)
        self.live.remove(freed)
        with pytest.raises(ValueError, match="not in list"):
            self.spans.free(freed)

    @rule(nbytes=st.integers(1, 45 * UNIT), data=st.data())
    def find_cheapest(self, nbytes: int, data: st.DataObject) -> None:
        """Evicting what is said makes the span free; nothing that lies elsewhere goes."""
        order = data.draw(st.permutations(self.live))
        evictable = order[: data.draw(st.integers(0, len(order)))]
        found = self.spans.find_cheapest(nbytes, evictable)
        walls = [one for one in self.live if one not in evictable]
        if found is None:
            assert longest_hole(walls, 40) * UNIT < nbytes
            return
        place, victims = found
        assert set(victims) <= set(evictable)
        assert all(victim.overlaps(place) for victim in victims)
        assert not any(one.overlaps(place) for one in self.live if one not in victims)
        # None used later than needed: those before the last victim alone do not make room.
        if victims:
            earlier = evictable[: max(map(evictable.index, victims))]
            assert self.spans.find(nbytes, earlier) is None

    @precondition(lambda self: not self.live)
    @rule()
    def all_is_one_hole_again(self) -> None:
        """Once everything is freed, the whole range can be taken in one."""
        assert self.spans.find(40 * UNIT) == span(0, 40)
        assert self.spans.find(40 * UNIT + 1) is None

    @invariant()
    def spans_are_apart_and_accounted_for(self) -> None:
        """They lie aligned within the range, none over another, and no byte is lost."""
        assert list(self.spans.taken) == sorted(self.live)
        for left, right in zip(self.spans.taken, self.spans.taken[1:], strict=False):
            assert left.end <= right.start
        for one in self.live:
            assert one.start % UNIT == one.end % UNIT == 0
            assert 0 <= one.start < one.end <= 40 * UNIT
        assert self.spans.used_bytes == sum(map(len, self.live))


def longest_hole(taken: list[Span], units: int) -> int:
    """Return the longest run of free units, counted one by one."""
    free = [not any(one.overlaps(span(i, i + 1)) for one in taken) for i in range(units)]
    longest = run = 0
    for unit in free:
        run = run + 1 if unit else 0
        longest = max(longest, run)
    return longest


TestSpans = SpansMachine.TestCase
TestSpans.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("wrong", [span(3, 5), span(9, 12), Span(1, UNIT), Span(UNIT, UNIT)])
def test_spans_are_only_taken_where_they_can_be(wrong: Span) -> None:
    """Taken already, beyond the end, not aligned, or empty: each is refused."""
    spans = Spans(10 * UNIT)
    spans.take(span(4, 6))

    with pytest.raises(ValueError, match=r"taken|aligned"):
        spans.take(wrong)


def test_victims_are_those_used_longest_ago() -> None:
    """As few of the oldest as make one hole, and None rather than what is not offered."""
    spans = Spans(6 * UNIT)
    old, older, oldest, new = span(0, 2), span(2, 3), span(4, 5), span(5, 6)
    for one in (old, older, oldest, new):
        spans.take(one)

    assert spans.find_cheapest(2 * UNIT, [oldest, older, old, new]) == (span(3, 5), [oldest])
    assert spans.find_cheapest(3 * UNIT, [oldest, older, old, new]) == (span(2, 5), [oldest, older])
    assert spans.find_cheapest(6 * UNIT, [oldest, older, old]) is None


def test_what_is_parked_comes_back_unchanged() -> None:
    """Its own bytes, in the arena's memory, as many as were parked."""
    arena = HostArena(4 * UNIT, pin=False)
    block = torch.arange(300, dtype=torch.int32).to(torch.uint8)

    assert arena.park("a", block)
    block_before = block.clone()
    block.zero_()

    with arena.borrow("a") as bytes_of_a:
        assert bytes_of_a is not None
        torch.testing.assert_close(bytes_of_a, block_before)
        assert bytes_of_a.data_ptr() % 64 == 0
    with arena.borrow("b") as nothing:
        assert nothing is None
    assert arena.used_bytes == 2 * UNIT
    assert repr(arena) == "<HostArena unpinned: 1 parked, 512 of 1024 bytes>"


def test_least_recently_used_goes_first() -> None:
    """Borrowing and parking again both count as a use."""
    arena = HostArena(3 * UNIT, pin=False)
    for key in "abc":
        assert arena.park(key, block_of(key, 1))
    with arena.borrow("a"):
        pass
    assert arena.park("b", block_of("b", 1))

    assert arena.park("d", block_of("d", 1))

    assert arena.keys == ("a", "b", "d")
    assert arena.used_bytes == 3 * UNIT


def test_what_is_borrowed_stays() -> None:
    """No room is made of it: a block is refused, with nothing evicted, rather."""
    arena = HostArena(3 * UNIT, pin=False)
    arena.park("a", block_of("a", 1))
    arena.park("b", block_of("b", 1))

    with arena.borrow("b") as lent:
        assert lent is not None
        assert not arena.park("large", block_of("large", 3))
        assert arena.keys == ("a", "b")
        assert not arena.park("two", block_of("two", 2))  # b lies in the middle
        assert arena.park("c", block_of("c", 1))
        assert torch.equal(lent, block_of("b", 1))
    assert arena.park("large", block_of("large", 3))
    assert set(arena.keys) == {"large"}


def test_dropped_while_borrowed_is_gone_but_still_there() -> None:
    """Nobody borrows it any more; its bytes are free once the last reader has left."""
    arena = HostArena(UNIT, pin=False)
    arena.park("a", block_of("a", 1))

    with arena.borrow("a") as outer, arena.borrow("a") as inner:
        arena.drop("a")
        with arena.borrow("a") as nothing:
            assert nothing is None
        assert not arena.park("a", block_of("other", 1))
        assert outer is not None
        assert inner is not None
        assert torch.equal(outer, block_of("a", 1))
        assert arena.used_bytes == UNIT

    assert arena.used_bytes == 0
    arena.drop("a")
    assert arena.park("b", block_of("b", 1))


def test_bytes_are_given_back_when_the_reader_fails() -> None:
    """An error inside of the block ends the loan as well."""
    arena = HostArena(UNIT, pin=False)
    arena.park("a", block_of("a", 1))

    with pytest.raises(RuntimeError, match="of the copy"), arena.borrow("a"):
        raise RuntimeError("of the copy")

    assert arena.park("b", block_of("b", 1))


def test_failed_copy_leaves_nothing() -> None:
    """The bytes are free again, and the key is not parked."""
    arena = HostArena(UNIT, pin=False)

    with pytest.raises(NotImplementedError):
        arena.park("a", torch.empty(UNIT, dtype=torch.uint8, device="meta"))

    assert arena.keys == ()
    assert arena.used_bytes == 0
    assert arena.park("a", block_of("a", 1))


@pytest.mark.parametrize("nbytes", [0, UNIT - 1])
def test_arena_without_room_parks_nothing(nbytes: int) -> None:
    """Zero bytes is the way to turn it off, on any machine."""
    arena = HostArena(nbytes, pin=nbytes == 0)

    assert not arena.park("a", block_of("a", 1))
    assert not arena.park("empty", torch.empty(0, dtype=torch.uint8))
    assert (arena.nbytes, arena.used_bytes, arena.keys) == (0, 0, ())


def test_negative_size_is_refused() -> None:
    """It says what it expects."""
    with pytest.raises(ValueError, match="0 bytes or more, not -1"):
        HostArena(-1, pin=False)


class HeldBack(torch.Tensor):
    """Bytes whose copying waits for a sign."""

    copying: threading.Event
    go_on: threading.Event

    @classmethod
    def __torch_function__(
        cls, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        """Wait inside of `copy_`."""
        if getattr(func, "__name__", "") == "copy_":
            cls.copying.set()
            assert cls.go_on.wait(10)
        plain: Any = super()
        return plain.__torch_function__(func, types, args, kwargs or {})


@dataclass
class HalfParked:
    """An arena into which another thread is just copying "a", which fills it."""

    arena: HostArena
    answers: list[bool]
    thread: threading.Thread

    def finish(self) -> list[bool]:
        """Let the copy end; return what the other thread was answered."""
        HeldBack.go_on.set()
        self.thread.join(10)
        return self.answers


@pytest.fixture
def half_parked() -> Iterator[HalfParked]:
    """Hold a copy in the middle."""
    HeldBack.copying, HeldBack.go_on = threading.Event(), threading.Event()
    arena = HostArena(2 * UNIT, pin=False)
    answers: list[bool] = []
    slow = block_of("a", 2).as_subclass(HeldBack)
    thread = threading.Thread(target=lambda: answers.append(arena.park("a", slow)))
    thread.start()
    assert HeldBack.copying.wait(10)
    half = HalfParked(arena, answers, thread)
    yield half
    half.finish()


def test_half_copied_is_neither_lent_nor_evicted(half_parked: HalfParked) -> None:
    """Other threads see it once it is whole; the lock is not held while it is copied."""
    arena = half_parked.arena

    with arena.borrow("a") as nothing:
        assert nothing is None
    assert not arena.park("a", block_of("a", 2))
    assert not arena.park("b", block_of("b", 1))
    assert arena.used_bytes == 2 * UNIT

    assert half_parked.finish() == [True]
    assert arena.keys == ("a",)


def test_dropped_while_copied_is_never_parked(half_parked: HalfParked) -> None:
    """A model that is taken away while it is being parked leaves nothing."""
    arena = half_parked.arena

    arena.drop("a")
    assert arena.used_bytes == 2 * UNIT  # the copy still writes to them

    assert half_parked.finish() == [False]
    assert (arena.keys, arena.used_bytes) == ((), 0)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_threads_always_read_their_own_bytes(seed: int) -> None:
    """Four threads park, read and drop twelve models where seven units have room."""
    arena = HostArena(7 * UNIT, pin=False)
    wrong: list[str] = []

    def work(number: int) -> None:
        choose = torch.Generator().manual_seed(seed * 10 + number)
        for _ in range(200):
            pick = int(torch.randint(12, (), generator=choose))
            key, units = f"model-{pick}", 1 + pick % 3
            arena.park(key, block_of(key, units))
            with arena.borrow(key) as lent:
                if lent is not None and not torch.equal(lent, block_of(key, units)):
                    wrong.append(key)
            if pick == 0:
                arena.drop(key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    for key in arena.keys:
        arena.drop(key)
    assert arena.used_bytes == 0
    assert arena.park("all", block_of("all", 7))
