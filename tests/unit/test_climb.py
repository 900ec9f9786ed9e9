"""What the memory tests take for a leak, and what not."""

import itertools
from collections.abc import Callable

import pytest

from tests.support.climb import MOST_ROUNDS, ROUND, Climb

LIMIT = 4096
WARM = 10


def _judge(resident: Callable[[int], int]) -> tuple[int, Climb]:
    """Take samples until it can tell; return how many that took."""
    climb = Climb(LIMIT, warm=WARM)
    for load in itertools.count():
        if climb.add(resident(load)):
            return load + 1, climb
    raise AssertionError


@pytest.mark.parametrize("leak", [8192, 400_000])
@pytest.mark.parametrize("every", [1, 7])
def test_a_leak_is_one_in_every_round(leak: int, every: int) -> None:
    """Also where it shows only now and then."""
    loads, climb = _judge(lambda load: load // every * every * leak)
    assert not climb.settled
    assert loads == WARM + MOST_ROUNDS * ROUND


def test_growth_before_the_rounds_and_steps_are_none() -> None:
    """The first round without a step tells."""
    loads, climb = _judge(lambda load: 10**9 if load >= WARM + ROUND // 2 else load)
    assert climb.settled
    assert [slope < LIMIT for slope in climb.slopes] == [False, True]
    assert loads == WARM + 2 * ROUND


def test_most_often_one_round_is_enough() -> None:
    """The spread is that of the rounds alone."""
    loads, climb = _judge(lambda load: 10**6 if load < WARM else load % 3)
    assert climb.settled
    assert loads == WARM + ROUND
    assert climb.spread == 2
