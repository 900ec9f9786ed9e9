"""What a batch is expected to take follows what was measured, and forgets nothing important."""

import pytest

from serve_app.engines.profile import BatchProfile
from serve_app.replica.timings import Timings

OWN, LARGE = (64, 64), (128, 128)


def test_the_profile_is_the_start() -> None:
    """Scaled by pixels for other shapes."""
    timings = Timings(BatchProfile((0.1, 0.15)), OWN)
    assert timings.expected_s(OWN, 1) == 0.1
    assert timings.expected_s(OWN, 2) == 0.15
    assert timings.expected_s(LARGE, 1) == pytest.approx(0.4)


def test_without_a_profile_the_first_measurement_counts() -> None:
    """For all shapes, by their pixels."""
    timings = Timings(BatchProfile(), OWN)
    assert timings.expected_s(OWN, 1) == 0.0
    timings.observe(OWN, 1, 0.2)
    assert timings.expected_s(OWN, 1) == 0.2
    assert timings.expected_s(LARGE, 1) == pytest.approx(0.8)


def test_measurements_are_smoothed() -> None:
    """One outlier does not count for more than its share."""
    timings = Timings(BatchProfile((0.1,)), OWN)
    timings.observe(OWN, 1, 1.1)
    assert timings.expected_s(OWN, 1) == pytest.approx(0.4)
    for _ in range(30):
        timings.observe(OWN, 1, 0.2)
    assert timings.expected_s(OWN, 1) == pytest.approx(0.2, rel=0.01)


def test_doubt_lowers_what_is_expected() -> None:
    """Until a picture is tried again."""
    timings = Timings(BatchProfile((0.1,)), OWN)
    timings.doubt(OWN)
    assert timings.expected_s(OWN, 1) == pytest.approx(0.09)


def test_thousands_of_shapes_are_not_kept() -> None:
    """A client may choose any."""
    timings = Timings(BatchProfile((0.1,)), OWN)
    timings.observe(LARGE, 1, 5.0)
    for side in range(32, 1920, 8):
        timings.observe((side, 32), 1, 0.1)
    assert timings.expected_s(LARGE, 1) <= 0.4  # as if it had not been measured


def test_slow_profile_is_proved_wrong_by_the_first_batch() -> None:
    """It may have been found while the device was busy; what it refuses would teach nothing."""
    timings = Timings(BatchProfile((10.0, 20.0)), OWN)
    timings.observe(OWN, 1, 0.02)
    assert timings.expected_s(OWN, 1) == pytest.approx(0.02)
    assert timings.expected_s(OWN, 2) == pytest.approx(0.04)
    assert timings.expected_s(LARGE, 1) == pytest.approx(0.08)


def test_good_profile_is_not_raised_by_small_pictures() -> None:
    """A pixel of theirs costs more."""
    timings = Timings(BatchProfile((0.1,)), OWN)
    timings.observe((32, 32), 1, 0.09)
    assert timings.expected_s(OWN, 1) == pytest.approx(0.1)
