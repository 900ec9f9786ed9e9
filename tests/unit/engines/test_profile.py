"""Batches grow for as long as that pays."""

import pytest

from serve_app.engines.profile import LARGEST, LONGEST_S, BatchProfile, measure


@pytest.mark.parametrize(
    ("seconds", "largest"),
    [
        ((), 1),
        ((0.040,), 1),
        ((0.040, 0.080), 1),
        ((0.040, 0.073), 1),  # a gain of less than a tenth
        ((0.040, 0.060), 2),
        ((0.040, 0.060, 0.130), 2),
        ((0.002, 0.003, 0.004, 0.005), 8),
        ((0.060, 0.110), 1),  # faster for each, but too long for the others
    ],
)
def test_largest_batch(seconds: tuple[float, ...], largest: int) -> None:
    """The table decides."""
    assert BatchProfile(seconds).max_batch == largest


def test_expected_seconds_are_read_from_the_table() -> None:
    """Rounded up to what was measured, and in proportion beyond it."""
    profile = BatchProfile((0.01, 0.015, 0.02))

    assert [profile.expected_s(n) for n in (1, 2, 3, 4)] == [0.01, 0.015, 0.02, 0.02]
    assert profile.expected_s(8) == pytest.approx(0.04)
    assert BatchProfile().expected_s(3) == 0.0


@pytest.mark.parametrize(
    ("each", "fixed", "tried"),
    [
        (0.04, 0.0, [1, 2]),  # no gain: one try
        (0.2, 0.0, [1]),  # too slow to try
        (0.0001, 0.002, [1, 2, 4, 8]),
        (0.01, 0.04, [1, 2]),  # four would take too long, by what two took
    ],
)
def test_measuring_stops_where_more_does_not_pay(
    each: float, fixed: float, tried: list[int]
) -> None:
    """A slow model is not warmed up for seconds."""
    seen: list[int] = []

    def run(batch: int) -> float:
        seen.append(batch)
        return fixed + each * batch

    profile = measure(run)

    assert seen == tried
    assert profile.max_batch <= LARGEST
    assert profile.expected_s(profile.max_batch) <= LONGEST_S or profile.max_batch == 1
