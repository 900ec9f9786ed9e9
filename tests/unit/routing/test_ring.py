"""Places on the ring: the same for all, in proportion, and moved as little as possible."""

from collections import Counter

import pytest

from serve_app.routing.ring import Ring

MODELS = [f"model-{index}@1" for index in range(4000)]


def homes(ring: Ring) -> dict[str, str]:
    """Return the first place of each model."""
    return {model: next(ring.walk(model)) for model in MODELS}


def test_every_router_finds_the_same_places() -> None:
    """The order in which replicas were told of does not matter."""
    weights = {f"r{index}": 100 for index in range(8)}
    assert homes(Ring(weights)) == homes(Ring(dict(reversed(weights.items()))))


def test_a_replica_that_goes_moves_only_its_own() -> None:
    """All others stay; one that comes takes its share and nothing else moves."""
    all_of_them = {f"r{index}": 0 for index in range(8)}
    rest = {id_: weight for id_, weight in all_of_them.items() if id_ != "r3"}
    before, after = homes(Ring(all_of_them)), homes(Ring(rest))
    assert all(after[model] == home for model, home in before.items() if home != "r3")


def test_shares_follow_the_budgets() -> None:
    """Within a quarter: twice the budget, twice the models; unknown counts as the lightest."""
    counted = Counter(homes(Ring({"small": 100, "new": 0, "large": 200})).values())
    assert counted["large"] == pytest.approx(2000, rel=0.25)
    assert counted["small"] == pytest.approx(1000, rel=0.25)
    assert counted["new"] == pytest.approx(1000, rel=0.25)


def test_a_walk_names_everybody_once() -> None:
    """Beginning at the home; nobody on an empty ring."""
    ring = Ring({f"r{index}": 1 for index in range(5)})
    walk = list(ring.walk("m"))
    assert sorted(walk) == [f"r{index}" for index in range(5)]
    assert list(Ring({}).walk("m")) == []
