"""Ray may tell less of a replica than it did: what was known stands until the replica speaks."""

import pytest

from serve_app.routing.stats import RoutingStats
from tests.unit.routing.fleet import GIB, Fleet, stats


def a_fleet() -> tuple[Fleet, str]:
    """Return a fleet, and the replica that has `m`: not the one where it would be loaded."""
    fleet = Fleet("a", "b", "c", "d")
    places = [id_ for rank in fleet.rank("m")[:2] for id_ in rank]
    holder = next(id_ for id_ in fleet.models if id_ not in places)
    fleet.models[holder] = {"m"}
    fleet.stats[holder] = stats(model_bytes=GIB // 8, free_bytes=GIB // 8 * 7)
    fleet.tell()
    return fleet, holder


@pytest.mark.parametrize("told", [RoutingStats(), stats(model_bytes=GIB // 8)])
def test_ids_that_are_not_told_are_remembered(told: RoutingStats) -> None:
    """With no word at all, and with statistics that say that there are models."""
    fleet, holder = a_fleet()
    fleet.models[holder] = set()
    fleet.stats[holder] = told
    for _ in range(3):
        fleet.tell()
        assert fleet.rank("m")[0] == [holder]


def test_statistics_that_are_not_told_are_remembered() -> None:
    """A hot model keeps its copies, and a full replica does not seem to have room."""
    fleet, holder = a_fleet()
    fleet.stats[holder] = stats(model_bytes=GIB // 8, busy={"m": 0.95})
    fleet.tell()
    assert fleet.copies("m") == 2
    fleet.models[holder], fleet.stats[holder] = set(), RoutingStats()
    fleet.tell()
    assert fleet.view._busy() == {"m": 0.95}
    assert fleet.copies("m") == 2


def test_an_empty_replica_is_believed() -> None:
    """Its statistics say that there is no model, or another id is told."""
    fleet, holder = a_fleet()
    fleet.models[holder], fleet.stats[holder] = {"other"}, RoutingStats()
    fleet.tell()
    assert fleet.rank("m")[0] != [holder]
    fleet, holder = a_fleet()
    fleet.models[holder], fleet.stats[holder] = set(), stats()
    fleet.tell()
    assert fleet.rank("m")[0] != [holder]
    fleet.models[holder] = {"m"}
    fleet.tell()
    assert fleet.rank("m")[0] == [holder]


def test_a_new_replica_of_another_id_has_nothing() -> None:
    """What is remembered goes with the replica."""
    fleet, holder = a_fleet()
    del fleet.models[holder], fleet.stats[holder]
    fleet.tell()
    fleet.models[holder], fleet.stats[holder] = set(), RoutingStats()
    fleet.tell()
    assert fleet.view._holders == {}
