"""A step that never ends is told from one that is slow, and from one that has ended."""

import pytest

from serve_app.engines.watch import PATIENCE, WARM_UP_S, Watch
from tests.unit.cache.fakes import FakeClock


def test_a_step_is_overdue_after_the_limit() -> None:
    """And no longer once it has ended; shorter ones beside it do not hide it."""
    clock = FakeClock()
    watch = Watch(clock)
    with watch.step("a pass"):
        clock.advance(30.0)
        with watch.step("a decode"):
            assert watch.overdue(30.0) is None
            clock.advance(0.5)
            assert watch.overdue(30.0) == "a pass has been running for 30 s"
    assert watch.overdue(0.0) is None


def test_a_step_may_take_many_times_what_is_expected() -> None:
    """A slow model is no stuck engine."""
    clock = FakeClock()
    watch = Watch(clock)
    with watch.step("a pass", expected_s=8.0):
        clock.advance(PATIENCE * 8.0)
        assert watch.overdue(30.0) is None
        clock.advance(1.0)
        assert watch.overdue(30.0) == "a pass has been running for 81 s"


def test_a_step_that_fails_has_ended() -> None:
    """A model that raises leaves nothing behind."""
    watch = Watch(FakeClock())

    def fail() -> None:
        with watch.step("a pass"):
            raise ValueError("bad model")

    with pytest.raises(ValueError, match="bad model"):
        fail()
    assert watch.overdue(-1.0) is None


def test_a_step_is_late_beyond_many_times_what_is_expected() -> None:
    """It is told by how long it has run; the latest counts, and one that has ended does not."""
    clock = FakeClock()
    watch = Watch(clock)
    assert watch.late_s() == 0.0
    with watch.step("a pass", expected_s=0.5):
        clock.advance(PATIENCE * 0.5)
        assert watch.late_s() == 0.0
        clock.advance(1.0)
        with watch.step("a preprocessing"):
            clock.advance(1.0)
            assert watch.late_s() == 7.0
    assert watch.late_s() == 0.0


def test_what_nothing_is_known_of_is_late_after_a_warm_up() -> None:
    """The first pass of a slow model: nobody could say how long it takes."""
    clock = FakeClock()
    watch = Watch(clock)
    with watch.step("a pass"):
        clock.advance(WARM_UP_S)
        assert watch.late_s() == 0.0
        clock.advance(1.0)
        assert watch.late_s() == WARM_UP_S + 1.0
