"""What is done again and again begins and ends with its block."""

import subprocess
import sys
import threading

import pytest

from benchmarks.faults.nodes import has_ended
from benchmarks.repeat import Repeater


class Counter(Repeater):
    """Counts, and knows when it was done for the third time."""

    def __init__(self) -> None:
        super().__init__("counter", 0.001)
        self.times_s: list[float] = []
        self.third = threading.Event()
        self.closed = False

    def once(self) -> None:
        """Count one."""
        self.times_s.append(self.elapsed_s)
        if len(self.times_s) == 3:
            self.third.set()

    def close(self) -> None:
        """Note that nothing more comes."""
        self.closed = True


def test_it_is_done_until_the_block_ends_and_once_after() -> None:
    """Also where the block fails."""

    def fail() -> None:
        with counter:
            assert counter.third.wait(10.0)
            seen.append(len(counter.times_s))
            raise ValueError("in the block")

    counter = Counter()
    seen: list[int] = []
    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert counter.closed
    assert len(counter.times_s) > seen[0] >= 3
    assert counter.times_s == sorted(counter.times_s)
    assert counter.times_s[0] >= 0


def test_it_may_be_short() -> None:
    """A block that ends at once has a beginning and an end."""
    with Counter() as counter:
        pass
    assert len(counter.times_s) >= 1
    with pytest.raises(NotImplementedError):
        Repeater("nothing", 1.0).once()


def test_a_process_has_ended_when_its_sockets_are_closed() -> None:
    """Its parent need not have taken note."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not has_ended(process.pid)
        process.kill()
        while not has_ended(process.pid):
            pass
    assert has_ended(process.pid)
