"""How long an engine has been late, from the replica to the routers."""

import json

import pytest

from serve_app.replica.routing_stats import RoutingMeter
from serve_app.routing.stats import RoutingStats, rounded_late_s


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, 0.0), (0.99, 0.0), (1.0, 1.0), (1.9, 1.0), (2.0, 2.0), (35.0, 32.0)]
)
def test_it_is_told_in_powers_of_two(seconds: float, told: float) -> None:
    """A change every half second would be sent to every router."""
    assert rounded_late_s(seconds) == told


def test_it_travels() -> None:
    """And what is odd or missing counts as in time."""
    stats = RoutingStats(late_s=4.0)
    assert RoutingStats.from_wire(json.loads(json.dumps(stats.to_wire()))) == stats
    for wire in ({}, {"late_s": -1}, {"late_s": "x"}, {"late_s": True}):
        assert RoutingStats.from_wire(wire).late_s == 0.0


def test_a_replica_tells_it() -> None:
    """As its engine's watch says."""

    class Prepared:
        settled = 0

        def prepared(self) -> None:
            """Know of nothing."""

    meter = RoutingMeter(1, Prepared())
    told = meter.stats(
        budget_bytes=1,
        used_bytes=0,
        max_models=None,
        advertised=set(),
        models=(),
        parked=(),
        late_s=5.5,
    )
    assert told.late_s == 4.0
