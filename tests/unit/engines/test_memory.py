"""What a model is said to hold stays within what one model can hold."""

import pytest

from serve_app.engines import memory
from serve_app.engines.memory import plausible_growth, release_free_memory, resident_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("growth", "counted"),
    [(12, 12), (1, 5), (0, 5), (-300, 5), (19, 19), (300, 20)],
    ids=["plausible", "memory freed before", "none", "others freed", "more", "others grew"],
)
def test_growth_counts_as_far_as_is_plausible(
    growth: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the estimate at least, twice at most."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: (400 + growth) * MIB)

    assert plausible_growth(400 * MIB, estimate=10 * MIB) == counted * MIB


@pytest.mark.alone
def test_growth_is_this_process() -> None:
    """What was allocated and touched is found again."""
    release_free_memory()
    before = resident_bytes()

    held = bytearray(b"x") * (64 * MIB)

    assert plausible_growth(before, estimate=50 * MIB) == pytest.approx(len(held), rel=0.1)
