"""A scan that steps back for requests."""

import threading
import time

import pytest

from serve_app.registry.pace import REST_S, WORK_S, Pace
from tests.unit.registry.support import Clock


class Worker:
    """Works in steps of half a slice; a rest takes its time on the same clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.rests: list[float] = []
        self.pace = Pace(self.clock, self._rest)

    def _rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.clock.now += seconds

    def work(self, steps: int) -> None:
        """Do so many steps."""
        for _ in range(steps):
            self.clock.now += WORK_S / 2
            self.pace.step()


def test_it_takes_a_quarter_of_the_time() -> None:
    """A slice of work, then a rest of three times that."""
    worker = Worker()
    worker.pace.begin(gently=True)
    started = worker.clock.now
    worker.work(200)
    assert len(worker.rests) == pytest.approx(100, abs=1)
    assert worker.pace.rested_s == pytest.approx(sum(worker.rests))
    assert 200 * WORK_S / 2 / (worker.clock.now - started) == pytest.approx(0.25, abs=0.01)


def test_at_full_speed_it_never_rests() -> None:
    """Nothing else runs in that process, or somebody waits."""
    worker = Worker()
    worker.pace.begin(gently=False)
    worker.work(100)
    assert worker.rests == []


def test_whoever_waits_ends_the_rests() -> None:
    """Of this piece of work, not of the next."""
    worker = Worker()
    worker.pace.begin(gently=True)
    worker.work(10)
    before = len(worker.rests)
    worker.pace.hurry()
    worker.work(10)
    assert len(worker.rests) == before > 0
    worker.pace.end()
    worker.pace.begin(gently=True)
    assert worker.pace.rested_s == 0.0
    worker.work(10)
    assert len(worker.rests) == 2 * before


def test_a_rest_ends_when_somebody_begins_to_wait() -> None:
    """By a thread that rests for real; the clock makes each step a full slice."""
    ticks = iter(range(1000))
    pace = Pace(lambda: float(next(ticks)))
    pace.begin(gently=True)
    pace.hurry()
    started = time.monotonic()
    for _ in range(100):
        pace.step()
    assert time.monotonic() - started < 100 * REST_S
    worker = threading.Thread(target=pace.step)
    worker.start()
    worker.join(5)
    assert not worker.is_alive()
