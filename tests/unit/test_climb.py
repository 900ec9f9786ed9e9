"""What the memory tests take for a leak, and what not."""

import itertools
import random
from collections.abc import Callable

import pytest

from tests.support.climb import LEAST_ROUNDS, MOST_ROUNDS, ROUND, Climb

KIB, MIB = 2**10, 2**20
LIMIT = 4 * KIB
WARM = 40
LEAST = WARM + LEAST_ROUNDS * ROUND
MOST = WARM + MOST_ROUNDS * ROUND

Series = Callable[[int], int]


def _judge(resident: Series) -> tuple[int, Climb]:
    """Take samples until it can tell; return how many that took."""
    climb = Climb(LIMIT, warm=WARM)
    for load in itertools.count():
        if climb.add(resident(load)):
            return load + 1, climb
    raise AssertionError


def _noise(seed: int) -> Series:
    """Return what concurrent work holds as one looks: nothing half of the time, else up to 1 MiB.

    Twice as much as the memory tests show; now and then there is a dip, too.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret

    def held(load: int) -> int:
        dip = 2 * MIB if chance.random() < 0.02 else 0
        return (chance.randrange(MIB) if chance.random() < 0.5 else 0) - dip

    return held


LEAKS: dict[str, Series] = {
    "8 KiB per load": lambda load: load * 8 * KIB,
    "a model per load": lambda load: load * 400_000,
    "a model in seven loads": lambda load: load // 7 * 400_000,
    "a model in sixty loads": lambda load: load // 60 * 400 * KIB,
    "20 KiB per load in steps of 1 MiB": lambda load: load * 20 * KIB // MIB * MIB,
    "20 KiB per load in steps of 2 MiB": lambda load: load * 20 * KIB // (2 * MIB) * 2 * MIB,
    "20 KiB per load, 1 MB given back in the first round": (
        lambda load: load * 20 * KIB - (load > 65) * 1_000_000
    ),
    "20 KiB per load, 1 MB given back in the last round": (
        lambda load: load * 20 * KIB - (load > WARM + (LEAST_ROUNDS - 1) * ROUND) * 1_000_000
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("begun", range(0, 120, 9))
def test_a_leak_is_one_however_long_one_looks(leak: Series, begun: int) -> None:
    """Also where it shows only now and then, wherever the rounds begin."""
    base = leak(begun)
    loads, climb = _judge(lambda load: leak(begun + load) - base)
    assert not climb.settled
    assert loads == MOST


@pytest.mark.parametrize("seed", range(20))
def test_noise_hides_no_leak_and_is_none(seed: int) -> None:
    """It is judged in the least number of loads where nothing leaks."""
    held = _noise(seed)
    loads, climb = _judge(lambda load: 10**8 + held(load))
    assert (climb.settled, loads) == (True, LEAST)
    held = _noise(seed)
    _, climb = _judge(lambda load: load * 20 * KIB + held(load))
    assert not climb.settled


@pytest.mark.parametrize("at", range(WARM, LEAST, 10))
def test_a_single_step_is_none(at: int) -> None:
    """Whenever an allocator takes 1 MiB for good; a small one needs no further round."""
    loads, climb = _judge(lambda load: (load >= at) * MIB)
    assert climb.settled
    assert loads in range(LEAST, MOST + 1)
    loads, climb = _judge(lambda load: (load >= at) * 400_000)
    assert (climb.settled, loads) == (True, LEAST)


def test_growth_before_the_rounds_is_none() -> None:
    """The spread is that of the rounds alone."""
    loads, climb = _judge(lambda load: 10**6 * load if load < WARM else load % 3)
    assert (climb.settled, loads) == (True, LEAST)
    assert climb.spread == 2
