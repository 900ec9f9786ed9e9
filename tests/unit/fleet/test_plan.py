"""The plan: as many copies as wanted, few moves, within budgets, the same from everyone."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.fleet.plan import (
    HOT_S,
    Seconds,
    best_places,
    configured_in,
    gives_way_after_s,
    plan,
    second_copies,
    spares,
)
from serve_app.types import ReplicaReport, ResidentModel
from tests.unit.fleet.fakes import SIZE, report

names = st.sampled_from([f"r{number}" for number in range(6)])
model_keys = st.sampled_from("abcd")
wanted_models = st.dictionaries(model_keys, st.one_of(st.none(), st.integers(1, 4)))
fleets = st.lists(
    st.builds(
        report,
        names,
        models=st.sets(model_keys),
        pinned=st.sets(model_keys),
        errors=st.sets(model_keys, max_size=1),
    ),
    unique_by=lambda one: one.replica_id,
    max_size=6,
)


def _copies(planned: Mapping[str, frozenset[str]], key: str) -> set[str]:
    return {name for name, keys in planned.items() if key in keys}


def _carried_out(
    reports: list[ReplicaReport], wanted: dict[str, int | None]
) -> dict[str, ReplicaReport]:
    planned = plan(reports, wanted)
    return {
        one.replica_id: report(
            one.replica_id,
            models={model.key for model in one.models} | planned[one.replica_id],
            pinned=planned[one.replica_id],
        )
        for one in reports
    }


@given(fleets, wanted_models)
def test_each_model_is_planned_as_often_as_wanted(
    reports: list[ReplicaReport], wanted: dict[str, int | None]
) -> None:
    """Or on all replicas where they are fewer; what is not wanted nowhere."""
    planned = plan(reports, wanted)
    assert set(planned) == {one.replica_id for one in reports}
    for key in "abcd":
        copies = wanted.get(key, 0)
        expected = len(reports) if copies is None else min(copies, len(reports))
        assert len(_copies(planned, key)) == expected


@given(fleets, wanted_models, st.randoms())
def test_everyone_comes_to_the_same_plan(
    reports: list[ReplicaReport], wanted: dict[str, int | None], random: object
) -> None:
    """The order in which reports arrive makes no difference; carried out, it stays as it is."""
    shuffled = list(reports)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    planned = plan(reports, wanted)
    assert plan(shuffled, wanted) == planned
    again = _carried_out(reports, wanted)
    assert plan(list(again.values()), wanted) == planned


@given(
    wanted_models,
    st.sets(names, min_size=1),
    st.lists(st.tuples(st.booleans(), names), max_size=12),
)
def test_coming_and_going_moves_only_what_it_must(
    wanted: dict[str, int | None], first: set[str], events: list[tuple[bool, str]]
) -> None:
    """A copy goes to another replica only to replace one that was lost, or was missing before."""
    state = _carried_out([report(name) for name in sorted(first)], wanted)
    for joins, name in events:
        before = {one.replica_id: set(one.pinned) for one in state.values()}
        if joins:
            state.setdefault(name, report(name))
        elif len(state) > 1:
            state.pop(name, None)
        state = _carried_out(list(state.values()), wanted)
        for key, copies in wanted.items():
            now = {one.replica_id for one in state.values() if key in one.pinned}
            assert len(now) == (len(state) if copies is None else min(copies, len(state)))
            kept = {name for name, keys in before.items() if key in keys and name in state}
            assert kept <= now, "nothing that is in place moves"


@given(wanted_models, st.lists(st.integers(0, 4 * SIZE), min_size=1, max_size=5))
def test_budgets_are_respected(wanted: dict[str, int | None], budgets: list[int]) -> None:
    """But for what is pinned everywhere, which the operator wants so."""
    reports = [
        report(f"r{number}", models="abcd", budget=budget) for number, budget in enumerate(budgets)
    ]
    everywhere = sum(copies is None for copies in wanted.values())
    for one in reports:
        planned = plan(reports, wanted)[one.replica_id]
        assert len(planned) * SIZE <= max(one.budget_bytes, everywhere * SIZE)


def test_the_longest_pinned_has_precedence_where_room_is_short() -> None:
    """The first of `wanted` takes the room; a cap on the number of models counts as well."""
    tight = [report("r1", models="ab", budget=SIZE)]
    assert plan(tight, {"b": 1, "a": 1}) == {"r1": {"b"}}
    assert plan(tight, {"a": 1, "b": 1}) == {"r1": {"a"}}
    assert plan([report("r1", max_models=1)], {"b": 1, "a": 1}) == {"r1": {"b"}}


def test_a_model_goes_where_it_is_and_away_from_where_it_fails() -> None:
    """Pinned before resident before elsewhere; a replica that could not load it comes last."""
    reports = [report("r1"), report("r2", models="a"), report("r3", pinned="a")]
    assert best_places(reports, "a")[:2] == ["r3", "r2"]
    failing = [report("r1"), report("r2", models="a", pinned="a", errors="a")]
    assert plan(failing, {"a": 1}) == {"r1": {"a"}, "r2": frozenset()}
    assert plan(failing, {"a": 2}) == {"r1": {"a"}, "r2": {"a"}}


def test_where_there_is_no_room_comes_last_but_is_tried() -> None:
    """A replica itself says best why a model does not fit; the pinned ones do not give way."""
    full = report("r1", models="abc", pinned="ab", budget=2 * SIZE)
    assert best_places([full, report("r2")], "c") == ["r2", "r1"]
    assert best_places([full], "c") == ["r1"]


@pytest.mark.parametrize("copies", [1, 2])
def test_before_one_replica_goes_every_pin_has_a_second_copy(copies: int) -> None:
    """Where there is a second replica."""
    reports = [report("r1", models="a", pinned="a"), report("r2"), report("r3")]
    planned = plan(reports, {"a": copies}, Seconds.MAKE)
    assert len(_copies(planned, "a")) == 2
    assert "a" in planned["r1"]
    assert plan(reports[:1], {"a": copies}, Seconds.MAKE) == {"r1": {"a"}}
    extra = second_copies(reports, planned, {"a": copies})
    assert len(_copies(extra, "a")) == 2 - copies
    assert "a" not in extra["r1"], "the one that was there is none"


def test_second_copies_stay_while_others_would_have_them_made() -> None:
    """Keepers began to wait at different times; a copy that somebody wanted is no second one."""
    first, second = (report(name, models="ab", pinned="ab") for name in ("r1", "r2"))
    reports = [first, replace(second, second_copies=("a",))]
    wanted: dict[str, int | None] = {"a": 1, "b": 1}
    kept = plan(reports, wanted, Seconds.KEEP)
    assert _copies(kept, "a") == {"r1", "r2"}
    assert len(_copies(kept, "b")) == 1
    assert second_copies(reports, kept, wanted) == {"r1": set(), "r2": {"a"}}
    assert len(_copies(plan(reports, wanted), "a")) == 1


def _hot(key: str, idle_s: float = 1.0) -> ResidentModel:
    return ResidentModel(key, "resident", SIZE, 0, pinned=False, idle_s=idle_s)


def test_hot_models_get_a_second_copy_where_there_is_room() -> None:
    """Once each, the last used first; not those that have one or are to be pinned on another."""
    models: list[str | ResidentModel] = [_hot("a", 3.0), _hot("b", 2.0), _hot("c", 1.0), "cold"]
    hot = report("r1", models=[*models, _hot("twice"), _hot("planned")], used=6 * SIZE)
    other = report("r2", models=["twice"], budget=3 * SIZE, used=SIZE)
    planned = {"r1": frozenset[str](), "r2": frozenset({"planned"})}
    assert spares([hot, other], planned) == {"r2": {"c", "b"}}
    roomy = report("r2", models=["twice"], used=SIZE)
    assert spares([hot, roomy], planned) == {"r2": {"a", "b", "c"}}, "not what is cold"
    assert spares([hot], {"r1": frozenset()}) == {}
    full = report("r2", budget=SIZE, used=SIZE)
    assert spares([hot, full], {}) == {}


@pytest.mark.parametrize(
    ("held", "gives_way"),
    [
        (_hot("cold", 61.0), True),
        (_hot("asked for now and then", 59.0), False),
        (_hot("hot"), False),
        (replace(_hot("cold", 999.0), leases=1), False),
        (replace(_hot("cold", 999.0), pinned=True), False),
        (replace(_hot("cold", 999.0), state="loading"), False),
        (_hot("planned", 999.0), False),
        (_hot("wanted elsewhere", 999.0), False),
    ],
)
def test_only_what_nobody_wants_gives_way_to_a_second_copy(
    held: ResidentModel, gives_way: bool
) -> None:
    """A cache that has been in use for a while has no free memory."""
    models = [_hot("a"), _hot("wanted elsewhere", 2.0)]
    hot = report("r1", models=models, budget=2 * SIZE, used=2 * SIZE)
    planned = {"r2": frozenset({"planned"})}
    for max_models in (None, 1):
        budget = SIZE if max_models is None else 100 * SIZE
        full = report("r2", models=[held], budget=budget, used=SIZE, max_models=max_models)
        assert spares([hot, full], planned) == ({"r2": {"a"}} if gives_way else {})


def test_the_window_of_the_working_set_says_what_gives_way() -> None:
    """As each replica has it; but what is hot never does."""
    hot = report("r1", models=[_hot("a")], budget=SIZE, used=SIZE)
    full = report("r2", models=[_hot("b", HOT_S + 1)], budget=SIZE, used=SIZE)
    assert spares([hot, full], {}) == {}
    assert spares([hot, replace(full, working_set_window_s=HOT_S)], {}) == {"r2": {"a"}}
    assert gives_way_after_s(600.0) == 600.0
    assert gives_way_after_s(1.0) == HOT_S


def test_what_the_reports_say_together() -> None:
    """The most that any replica's user_config wants."""
    first = replace(report("r1"), configured={"a": 1, "b": 2})
    second = replace(report("r2"), configured={"a": None})
    assert configured_in([first, second]) == {"a": None, "b": 2}
