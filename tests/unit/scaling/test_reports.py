"""What a replica tells arrives as it was meant, and nonsense is left out."""

from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.scaling.decision import ReplicaLoad
from serve_app.scaling.placement import places
from serve_app.scaling.reports import MAX_PINNED, PinnedModel, read_reports, to_report
from serve_app.scaling.working_set import WorkingSetState


@dataclass
class Point:
    """One value as Ray has it."""

    timestamp: float
    value: Any


def _raw(**reports: dict[str, Any]) -> dict[str, dict[str, list[Point]]]:
    raw: dict[str, dict[str, list[Point]]] = {}
    for replica, report in reports.items():
        for name, value in report.items():
            raw.setdefault(name, {})[replica] = [Point(1.0, 0), Point(2.0, value)]
    return raw


def test_a_report_comes_back_as_it_was_sent() -> None:
    """Every number, for each replica its own."""
    state = WorkingSetState(30, 3, 4, {"a@1": 20}, 2.5, 0.5)
    pinned = [PinnedModel("p@1", 7, 2), PinnedModel("q@1", 5, None)]
    report = to_report(state, 100, pinned)
    assert all(type(value) is float for value in report.values()), "else Ray disables them for good"
    first, second = read_reports(_raw(r1=report, r2=to_report(WorkingSetState(), 50, [])))
    assert first == ReplicaLoad(
        budget_bytes=100.0,
        working_set_bytes=30.0,
        hot={"a@1": 20.0},
        pinned={"p@1": 14.0},
        everywhere_bytes=5.0,
        copies=2.0,
        asked=4.0,
        requests_per_s=2.5,
        regrets_per_s=0.5,
    )
    assert second == ReplicaLoad(50.0)


def test_many_pinned_models_are_told_as_a_sum() -> None:
    """The number of names stays bounded."""
    pinned = [PinnedModel(f"m{number}", number, 1) for number in range(1, 200)]
    report = to_report(WorkingSetState(), 100, pinned)
    (load,) = read_reports(_raw(r=report))
    assert len(load.pinned) == MAX_PINNED
    assert load.pinned_bytes + sum(load.pinned.values()) == sum(range(1, 200))


def test_names_that_are_no_longer_told_do_not_count() -> None:
    """Ray keeps their last values for a while."""
    raw = _raw(r=to_report(WorkingSetState(10, 1, 1, {"a@1": 10}), 100, []))
    raw["hot:old@1"] = {"r": [Point(1.0, 50.0)]}
    (load,) = read_reports(raw)
    assert dict(load.hot) == {"a@1": 10.0}


@pytest.mark.parametrize("value", [None, "5", True, float("nan"), float("inf"), -1, [], 10**400])
def test_a_budget_that_makes_no_sense_leaves_the_replica_out(value: object) -> None:
    """And any other number counts as 0."""
    good = to_report(WorkingSetState(), 100, [])
    assert read_reports(_raw(r={**good, "budget_bytes": value})) == ()
    assert read_reports(_raw(r={**good, "working_set_bytes": value})) == (ReplicaLoad(100.0),)


@pytest.mark.parametrize(
    "raw",
    [None, 5, [], {}, {"budget_bytes": None}, {"budget_bytes": {"r": []}}, {5: {"r": 1}}],
)
def test_odd_shapes_are_no_error(raw: object) -> None:
    """Whatever Ray hands over."""
    assert read_reports(raw) == ()


def test_places_are_gpus_or_nodes() -> None:
    """One detector for each GPU; without any, one for each node that has a CPU."""

    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    assert places([node(CPU=2.0)]) == 1
    assert places([node(CPU=16.0), node(CPU=4.0), node(), node(False, CPU=4.0)]) == 2
    assert places([node(CPU=4.0), node(CPU=8.0, GPU=4.0), node(CPU=4.0, GPU=1.0)]) == 5
    assert places([]) == 1
    assert places([{"Alive": True}]) == 1
