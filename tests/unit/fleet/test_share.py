"""Shares by rank: each model as often as wanted, evenly, and few moves."""

import math

from hypothesis import given
from hypothesis import strategies as st

from serve_app.fleet.plan import plan
from serve_app.fleet.share import pins_of, share_of
from serve_app.hashing import rendezvous
from tests.unit.fleet.fakes import report

keys = st.text("abcdef@1", min_size=1, max_size=6)
wanted_models = st.dictionaries(keys, st.one_of(st.none(), st.integers(1, 4)), max_size=12)


@given(wanted_models, st.integers(1, 6))
def test_together_the_shares_are_what_is_wanted(
    wanted: dict[str, int | None], world_size: int
) -> None:
    """Each model on as many replicas as wanted or as there are; a lone replica takes all."""
    shares = [share_of(wanted, rank, world_size) for rank in range(world_size)]
    for key, copies in wanted.items():
        assert sum(key in share for share in shares) == min(copies or world_size, world_size)
    assert share_of(wanted, 0, 1) == tuple(wanted), "in the order written"


@given(st.sets(keys, max_size=20), st.integers(1, 6))
def test_no_replica_has_more_than_its_part(wanted: set[str], world_size: int) -> None:
    """A cap on the number of models that is enough for all is enough for each."""
    once = dict.fromkeys(sorted(wanted), 1)
    for rank in range(world_size):
        assert len(share_of(once, rank, world_size)) <= math.ceil(len(wanted) / world_size)


def test_one_more_replica_moves_little() -> None:
    """Of a hundred models on four replicas a fifth would have to move; by rank, eighty would."""
    wanted = {f"model-{number}@1": 1 for number in range(100)}
    before = [set(share_of(wanted, rank, 4)) for rank in range(4)]
    after = [set(share_of(wanted, rank, 5)) for rank in range(4)]
    assert sum(len(new - old) for old, new in zip(before, after, strict=True)) < 25


def test_a_rank_beyond_the_known_size_has_a_share() -> None:
    """Ray does not tell replicas how many its autoscaler wants."""
    wanted: dict[str, int | None] = {f"model-{number}@1": 1 for number in range(100)}
    assert share_of(wanted, 3, 1) == share_of(wanted, 3, 4)
    assert len(share_of(wanted, 3, 1)) == 25


@given(wanted_models, st.integers(1, 4), st.integers(0, 3))
def test_what_the_autoscaler_adds_takes_no_pin_by_number(
    wanted: dict[str, int | None], world_size: int, beyond: int
) -> None:
    """The others have them already; what is wanted everywhere is its own, too."""
    everywhere = tuple(key for key, copies in wanted.items() if copies is None)
    assert pins_of(wanted, world_size + beyond, world_size) == everywhere
    for rank in range(world_size):
        assert pins_of(wanted, rank, world_size) == share_of(wanted, rank, world_size)


def test_an_autoscaled_replica_that_comes_moves_no_pin() -> None:
    """Number 0 began alone and pins all; the plan with number 1 leaves them there."""
    wanted: dict[str, int | None] = {f"model-{number}@1": 1 for number in range(20)} | {"all": None}
    first, second = (pins_of(wanted, rank, 1) for rank in (0, 1))
    planned = plan(
        [report("first", models=first, pinned=first), report("second", pinned=second)], wanted
    )
    assert planned == {"first": frozenset(wanted), "second": {"all"}}


def test_weights_are_the_same_in_every_process() -> None:
    """A fixed value, whatever Python's own hashes are seeded with."""
    assert rendezvous("codes-n@1", "0") == 12182509536634079529
