"""What a load costs where room is short."""

import pytest

from serve_app.routing.scoring import Costs, RoutingConfig, Typical
from tests.unit.routing.fleet import GIB, stats

CONFIG = RoutingConfig()


@pytest.mark.parametrize(("free", "missing"), [(2.0, 0.0), (1.0, 0.0), (0.75, 0.25), (0.0, 1.0)])
def test_an_eviction_costs_by_what_is_missing(free: float, missing: float) -> None:
    """Among full replicas the one with most room comes first, whoever seems to have just enough."""
    size = GIB // 8
    told = stats(model_bytes=size, free_bytes=int(free * size))
    costs = Costs.of(told, Typical.of([told], CONFIG), CONFIG)
    assert costs.evict_s == pytest.approx(missing * CONFIG.evict_factor * 0.3)


def test_where_no_budget_is_known_nothing_is_short() -> None:
    """A replica that has told nothing yet takes its part."""
    told = stats(budget_bytes=0, free_bytes=0)
    assert Costs.of(told, Typical.of([told], CONFIG), CONFIG).evict_s == 0.0
