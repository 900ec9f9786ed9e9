"""What replicas tell arrives as it was, and nonsense as nothing."""

import json

import pytest

from serve_app.routing.idfilter import IdFilter
from serve_app.routing.stats import (
    MAX_BUSY,
    RoutingStats,
    hottest,
    rounded,
    rounded_free_bytes,
)

FULL = RoutingStats(
    budget_bytes=1000,
    free_bytes=300,
    room_bytes=0,
    model_bytes=40,
    request_s=0.03,
    load_s=0.2,
    loading=frozenset({"b@1"}),
    parked=frozenset({"c@1", "a@1"}),
    prepared=IdFilter.of(["a@1", "b@1"]),
    busy={"a@1": 0.5},
)


def test_statistics_survive_the_way() -> None:
    """Through JSON and back they are the same, and equal ones give equal data."""
    wire = FULL.to_wire()
    assert RoutingStats.from_wire(json.loads(json.dumps(wire))) == FULL
    assert RoutingStats.from_wire({}) == RoutingStats()
    assert RoutingStats.from_wire(wire).to_wire() == wire


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget_bytes", "many"),
        ("budget_bytes", True),
        ("free_bytes", -1),
        ("room_bytes", -1),
        ("room_bytes", True),
        ("model_bytes", "many"),
        ("request_s", float("nan")),
        ("load_s", float("inf")),
        ("loading", "a@1"),
        ("loading", {"a@1": 1}),
        ("parked", 7),
        ("prepared", {"bits": "?", "hashes": 0}),
        ("prepared", {"bits": "\x00", "hashes": 3}),
        ("prepared", {"bits": "", "hashes": 3}),
        ("busy", [1, 2]),
    ],
)
def test_what_is_odd_counts_as_unknown(field: str, value: object) -> None:
    """One odd field harms no other."""
    read = RoutingStats.from_wire({**FULL.to_wire(), field: value})
    assert getattr(read, field) == getattr(RoutingStats(), field)
    assert read.parked == (frozenset() if field == "parked" else FULL.parked)


def test_more_than_the_budget_is_not_free() -> None:
    """A contradiction is read as the smaller room."""
    assert RoutingStats.from_wire({"budget_bytes": 10, "free_bytes": 99}).free_bytes == 10
    assert RoutingStats.from_wire({"budget_bytes": 10, "room_bytes": 99}).room_bytes == 10


def test_small_changes_are_not_told() -> None:
    """Numbers are rounded, so that not every request is broadcast."""
    assert rounded_free_bytes(3200, 0) == 3200
    assert rounded_free_bytes(3200, 1) == rounded_free_bytes(3200, 100) == 3100
    assert rounded_free_bytes(3200, 9999) == 0
    assert rounded(0.01234) == 0.012
    assert hottest({"a": 0.512, "b": 0.09, "c": 7.0}) == {"c": 1.0, "a": 0.5}
    assert len(hottest({str(index): 0.2 for index in range(50)})) == MAX_BUSY
