"""The filter never forgets an id, and rarely takes one for another."""

import pytest

from serve_app.routing.idfilter import IdFilter


@pytest.mark.parametrize(("count", "wrong"), [(0, 0.0), (1, 0.01), (100, 0.02), (2000, 0.02)])
def test_ids_are_known_and_others_mostly_not(count: int, wrong: float) -> None:
    """What was put in is there; about one in a hundred others seems to be."""
    ids = [f"model-{index}@1" for index in range(count)]
    made = IdFilter.of(ids)
    assert all(id_ in made for id_ in ids)
    mistaken = sum(f"other-{index}@1" in made for index in range(2000))
    assert mistaken <= wrong * 2000


def test_ten_thousand_ids_stay_small() -> None:
    """It is sent with every change, so it has a largest size, and is still of use there."""
    ids = [f"model-{index}@1" for index in range(10_000)]
    made = IdFilter.of(ids)
    assert len(made.bits) == 4096
    assert all(id_ in made for id_ in ids[::50])
    assert sum(f"other-{index}@1" in made for index in range(1000)) < 350


def test_the_same_ids_give_the_same_filter() -> None:
    """In any order, in any process."""
    assert IdFilter.of(["a", "b"]) == IdFilter.of(["b", "a"])
    assert IdFilter.from_wire(IdFilter.of(["a"]).to_wire()) == IdFilter.of(["a"])
    assert IdFilter.from_wire([]) is None
