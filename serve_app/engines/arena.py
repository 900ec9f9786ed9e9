"""Host memory for the weights of parked models: one block, claimed once, with its own budget.

A parked model is one copy away from the device. Weights never change, so what is evicted is
dropped and never copied back. On a GPU the block is pinned: the device reads it at full speed, and
claiming pinned memory, which is slow, happens once instead of with every model.

Space is kept as spans of one range. A block that fits nowhere evicts others: the span chosen is
the one whose blocks were all used longest ago, and only the blocks inside it go. So scattered
holes never refuse a block that is no larger than the arena; they cost an eviction earlier than a
count of bytes would, and nothing is ever moved. Without eviction the worst case is that of all
first-fit allocators: with sizes from m to M, the range can be about log2(M / m) times larger than
what lies in it before a block fits nowhere, which is 4.5 for the networks n to x.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from serve_app.engines.weights import allocate

ALIGNMENT = 256
"""Of each parked block, in bytes: what a device's copies and vector loads like best."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Bytes `start` to `end` of a range, the last one excluded."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def overlaps(self, other: "Span") -> bool:
        """Whether the two have a byte in common."""
        return self.start < other.end and other.start < self.end


class Spans:
    """Which parts of a flat range are taken; moves no bytes and knows no models.

    Free is what lies between the spans taken, so that neighbouring holes are one hole by
    themselves and no free byte can be lost.
    """

    def __init__(self, capacity: int) -> None:
        """Begin with `capacity` bytes free, less what is over a multiple of the alignment."""
        self.capacity = capacity // ALIGNMENT * ALIGNMENT
        self._taken: list[Span] = []

    @property
    def taken(self) -> Sequence[Span]:
        """The spans taken, by their places."""
        return tuple(self._taken)

    @property
    def used_bytes(self) -> int:
        """The bytes in them."""
        return sum(map(len, self._taken))

    def find(self, nbytes: int, ignoring: Collection[Span] = ()) -> Span | None:
        """Return the first span of `nbytes`, rounded up, that is free; None if there is none.

        ignoring: spans that count as free
        """
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        start = 0
        for taken in self._taken:
            if taken.start - start >= size:
                break
            if taken not in ignoring:
                start = taken.end
        return Span(start, start + size) if start + size <= self.capacity else None

    def find_cheapest(
        self, nbytes: int, evictable: Sequence[Span]
    ) -> tuple[Span, list[Span]] | None:
        """Return a span of `nbytes` and those of `evictable` that must go for it.

        As few of the first in `evictable` as make room are thought away, and of these only the
        ones in the span returned need go. None: not even all of them would make room.
        """
        if self.find(nbytes, set(evictable)) is None:
            return None
        needed = bisect.bisect_left(
            range(len(evictable)),
            True,
            key=lambda count: self.find(nbytes, set(evictable[:count])) is not None,
        )
        span = self.find(nbytes, set(evictable[:needed]))
        assert span is not None  # noqa: S101 - the search above ended where there is one
        return span, [victim for victim in evictable[:needed] if victim.overlaps(span)]

    def take(self, span: Span) -> None:
        """Mark a span as taken.

        Raises:
            ValueError: it is not aligned, not within the range, or not free
        """
        aligned = span.start % ALIGNMENT == 0 and span.end % ALIGNMENT == 0
        if not aligned or not 0 <= span.start < span.end <= self.capacity:
            raise ValueError(f"{span} is no aligned part of {self.capacity} bytes")
        if any(span.overlaps(taken) for taken in self._taken):
            raise ValueError(f"{span} is taken, at least in part")
        bisect.insort(self._taken, span)

    def free(self, span: Span) -> None:
        """Mark a span as free again.

        Raises:
            ValueError: it was not taken
        """
        self._taken.remove(span)


@dataclass(slots=True, eq=False)
class _Parked:
    """One model's block. `readers` counts who may be copying out of it or into it."""

    span: Span
    view: torch.Tensor
    readers: int = 0
    dropped: bool = False


class HostArena:
    """Flat blocks of weights by key, within one preallocated block of host memory.

    All methods may be called from any thread. Copies run outside the lock.
    """

    def __init__(self, nbytes: int, *, pin: bool) -> None:
        """Claim `nbytes` bytes of host memory; 0 makes an arena that parks nothing.

        pin: lock them into memory for the device's copies, which needs CUDA

        Raises:
            ValueError: `nbytes` is negative
        """
        if nbytes < 0:
            raise ValueError(f"an arena has 0 bytes or more, not {nbytes}")
        self._pinned = pin and nbytes > 0
        self._buffer = (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            if self._pinned
            else allocate(nbytes)
        )
        self._lock = threading.Lock()
        self._spans = Spans(nbytes)
        self._parked: OrderedDict[str, _Parked] = OrderedDict()  # least recently used first
        self._arriving: dict[str, _Parked] = {}

    def __repr__(self) -> str:
        kind = "pinned" if self._pinned else "unpinned"
        with self._lock:
            used, count = self._spans.used_bytes, len(self._parked)
        return f"<HostArena {kind}: {count} parked, {used} of {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """The bytes that can be used at most."""
        return self._spans.capacity

    @property
    def used_bytes(self) -> int:
        """The bytes in use now, rounded up as they are taken."""
        with self._lock:
            return self._spans.used_bytes

    @property
    def keys(self) -> tuple[str, ...]:
        """Whose blocks can be borrowed, the least recently used first."""
        with self._lock:
            return tuple(self._parked)

    def park(self, key: str, block: torch.Tensor) -> bool:
        """Copy `block` (n,) uint8, from any device, and keep it as `key`'s; whether it is kept.

        It is not when there is no room beside what is being read, or while another thread parks
        the same key. A key stands for the same bytes for ever: parking it again only marks it used.
        """
        with self._lock:
            if key in self._parked:
                self._parked.move_to_end(key)
                return True
            if key in self._arriving or (span := self._make_room(block.numel())) is None:
                return False
            view = self._buffer[span.start : span.start + block.numel()]
            arriving = self._arriving[key] = _Parked(span, view, readers=1)
        try:
            view.copy_(block)
        except BaseException:
            arriving.dropped = True
            raise
        finally:
            kept = self._settle(key, arriving)
        return kept

    @contextmanager
    def borrow(self, key: str) -> Iterator[torch.Tensor | None]:
        """Lend the bytes (n,) uint8 parked as `key`, None if there are none; only to be read.

        They stay in place until the `with` ends, which waits for copies that were queued on the
        current stream.
        """
        with self._lock:
            parked = self._parked.get(key)
            if parked is not None:
                self._parked.move_to_end(key)
                parked.readers += 1
        if parked is None:
            yield None
            return
        try:
            yield parked.view
        finally:
            try:
                if self._pinned:
                    torch.cuda.current_stream().synchronize()
            finally:
                self._release(parked)

    def drop(self, key: str) -> None:
        """Forget a block, if there is one; its bytes are free once nobody reads them."""
        with self._lock:
            parked = self._parked.pop(key, None) or self._arriving.pop(key, None)
            if parked is not None:
                self._drop(parked)

    def _make_room(self, nbytes: int) -> Span | None:
        """Take a span of `nbytes`, evicting for it; None, with nothing evicted, if none can be."""
        idle = {parked.span: key for key, parked in self._parked.items() if parked.readers == 0}
        found = self._spans.find_cheapest(nbytes, tuple(idle))
        if found is None:
            return None
        span, victims = found
        for victim in victims:
            self._drop(self._parked.pop(idle[victim]))
        self._spans.take(span)
        return span

    def _settle(self, key: str, arriving: _Parked) -> bool:
        """Make what was copied visible, unless it was dropped meanwhile or the copy failed."""
        with self._lock:
            if self._arriving.get(key) is arriving:
                del self._arriving[key]
                if not arriving.dropped:
                    self._parked[key] = arriving
        self._release(arriving)
        return not arriving.dropped

    def _release(self, parked: _Parked) -> None:
        with self._lock:
            parked.readers -= 1
            if parked.dropped and parked.readers == 0:
                self._spans.free(parked.span)

    def _drop(self, parked: _Parked) -> None:
        parked.dropped = True
        if parked.readers == 0:
            self._spans.free(parked.span)
