"""Keepers over simulated replicas: the wanted number of copies, whatever comes and goes."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.errors import (
    DeadlineExceededError,
    ModelBrokenError,
    ModelExceedsBudgetError,
    OverloadedError,
)
from serve_app.fleet.keeper import GRACE_S, PERIOD_S, FleetKeeper
from serve_app.fleet.pins import FORGET_S
from serve_app.types import ModelKey, ReplicaReport
from tests.unit.fleet.fakes import Clock, FakeFleet, Late, Replica, settle

A, B = ModelKey("a", "1"), ModelKey("b", "1")


def _keeper(fleet: FakeFleet, author: str = "k1") -> FleetKeeper:
    return FleetKeeper(fleet, author=author, wall_clock=fleet.clock, clock=fleet.clock)


async def _a_while(fleet: FakeFleet, *keepers: FleetKeeper) -> None:
    """Let enough time pass that keepers believe in what they see."""
    for _ in range(4):
        await fleet.clock.go(max(PERIOD_S, GRACE_S))
        await asyncio.gather(*(keeper.reconcile() for keeper in keepers))


async def test_a_pin_holds_as_replicas_come_and_go(fleet: FakeFleet) -> None:
    """Two copies, then one is lost, then a replica comes that nobody needs for it."""
    keeper = _keeper(fleet)
    placed = await keeper.pin(A, 2, 1.0)
    assert (placed.wanted, len(placed.replicas), placed.shortfall) == (2, 2, None)
    assert fleet.pinned("a@1") == fleet.holding("a@1") == set(placed.replicas)
    await fleet.remove(placed.replicas[0])
    await _a_while(fleet, keeper)
    assert fleet.pinned("a@1") == fleet.holding("a@1") == set(fleet.running)
    fleet.add("r4")
    await _a_while(fleet, keeper)
    assert len(fleet.pinned("a@1")) == 2
    assert "r4" not in fleet.pinned("a@1")


async def test_nothing_is_told_where_nothing_changed(fleet: FakeFleet) -> None:
    """Without pins the replicas hear of nothing, with them once."""
    keeper = _keeper(fleet)
    assert not await keeper.reconcile(), "nothing to stay for"
    assert fleet.orders == []
    await keeper.pin(A, 2, 1.0)
    told = len(fleet.orders)
    await _a_while(fleet, keeper, _keeper(fleet, "k2"))
    assert len(fleet.orders) == told
    assert await keeper.reconcile(), "a pin by number is to be watched"


async def test_what_does_not_answer_for_a_moment_is_planned_with(fleet: FakeFleet) -> None:
    """A replica that takes a configuration is away for less than a second: its copy stays."""
    keeper = _keeper(fleet)
    (name,) = (await keeper.pin(A, 1, 1.0)).replicas
    away = fleet.running.pop(name)
    await fleet.clock.go(GRACE_S)
    await keeper.reconcile()
    assert fleet.pinned("a@1") == set()
    assert keeper.replica_count == len(fleet.running) + 1
    fleet.running[name] = away
    await _a_while(fleet, keeper)
    assert fleet.pinned("a@1") == {name}
    assert sum(len(one.loads) for one in fleet.running.values()) == len(away.loads)


async def test_a_keeper_that_starts_learns_from_the_replicas_and_they_from_it(
    fleet: FakeFleet,
) -> None:
    """The table lives as long as one of either."""
    await _keeper(fleet).pin(A, 2, 1.0)
    late = _keeper(fleet, "k2")
    await late.reconcile()
    for name in list(fleet.running):
        await fleet.remove(name)
    fleet.add("new1", "new2", "new3")
    await _a_while(fleet, late)
    assert len(fleet.pinned("a@1") & fleet.holding("a@1")) == 2


async def test_unpin_and_unload_hold_against_everyone(fleet: FakeFleet) -> None:
    """Another keeper that still knows the pin does not bring it back."""
    first, second = _keeper(fleet), _keeper(fleet, "k2")
    await first.pin(A, None, 1.0)
    await second.reconcile()
    assert fleet.pinned("a@1") == set(fleet.running)
    assert await first.unpin(A) is None
    await _a_while(fleet, second, first)
    assert fleet.pinned("a@1") == set()
    assert fleet.holding("a@1") == set(fleet.running), "it may stay until its room is needed"
    assert await first.unpin(A) == 0

    await first.pin(A, 2, 1.0)
    assert await second.unload(A, 1.0) == 3
    await _a_while(fleet, first, second)
    assert fleet.holding("a@1") == set()


async def test_the_configuration_is_kept_too_and_may_be_overruled(fleet: FakeFleet) -> None:
    """Copies from `user_config` are spread like any others."""
    for name in list(fleet.running):
        await fleet.remove(name)
    fleet.add("r1", "r2", "r3", a=2)
    keeper = _keeper(fleet)
    await _a_while(fleet, keeper)
    assert len(fleet.pinned("a@1") & fleet.holding("a@1")) == 2
    assert await keeper.unpin(A) == 2
    fleet.add("r4", a=2)
    await _a_while(fleet, keeper)
    assert fleet.pinned("a@1") == set()


async def test_an_unpinning_of_the_configuration_is_not_forgotten(fleet: FakeFleet) -> None:
    """Not after hours, and not while no replica can say what is configured."""
    for name in list(fleet.running):
        await fleet.remove(name)
    fleet.add("r1", a=None)
    keeper = _keeper(fleet)
    await keeper.unpin(A)
    await keeper.pin(B, 1, 1.0)
    await keeper.unpin(B)
    await fleet.clock.go(FORGET_S + 1)
    await fleet.remove("r1")
    await keeper.reconcile()
    fleet.add("r2", a=None)
    await _a_while(fleet, keeper)
    assert fleet.pinned("a@1") == set()
    assert [pin.key for pin in fleet.running["r2"].holder.table.pins] == ["a@1"]


async def test_what_no_replica_can_load_is_not_pinned(fleet: FakeFleet) -> None:
    """The error says why; all replicas are tried when one has no room, one when it is broken."""
    for one in fleet.running.values():
        one.budget = 1
    keeper = _keeper(fleet)
    with pytest.raises(ModelExceedsBudgetError):
        await keeper.pin(A, 1, 1.0)
    assert [one.loads for one in fleet.running.values()] == [["a@1"]] * 3
    for one in fleet.running.values():
        one.broken["b@1"] = ModelBrokenError("cut short")
    with pytest.raises(ModelBrokenError):
        await keeper.pin(B, 1, 1.0)
    assert sum("b@1" in one.loads for one in fleet.running.values()) == 1
    assert fleet.orders == []


async def test_fewer_copies_than_wanted_are_told(fleet: FakeFleet) -> None:
    """A replica without room is passed over; the number is held once there is a place."""
    fleet.running["r1"].budget = 1
    keeper = _keeper(fleet)
    placed = await keeper.pin(A, 3, 1.0)
    assert placed.replicas == ("r2", "r3")
    assert placed.shortfall == "a@1 can never fit"
    assert (await keeper.load(B, 7, 1.0)).shortfall is not None
    fleet.add("r4")
    await _a_while(fleet, keeper)
    assert {"r2", "r3", "r4"} <= fleet.pinned("a@1")
    assert fleet.holding("a@1") == {"r2", "r3", "r4"}


async def test_a_load_wakes_a_fleet_of_none(fleet: FakeFleet) -> None:
    """Scaled to zero, the router's way starts a replica."""
    for name in list(fleet.running):
        await fleet.remove(name)
    placed = await _keeper(fleet).pin(A, 1, 1.0)
    assert placed.replicas == ("woken",)
    assert fleet.pinned("a@1") == {"woken"}


async def test_only_pins_by_number_are_to_be_watched(fleet: FakeFleet) -> None:
    """An entry for all replicas and an unpinning need no look every two seconds."""
    keeper = _keeper(fleet)
    await keeper.pin(A, None, 1.0)
    assert not await keeper.reconcile()
    await keeper.pin(A, 1, 1.0)
    assert await keeper.reconcile()
    await keeper.unpin(A)
    assert not await keeper.reconcile()


async def test_a_clock_that_lags_is_told_once(fleet: FakeFleet) -> None:
    """A replica that still remembers what the keeper has forgotten is no difference."""
    for name in list(fleet.running):
        fleet.running[name] = Replica(name, Late(fleet.clock))
    keeper = _keeper(fleet)
    await keeper.pin(A, 1, 1.0)
    await keeper.unpin(A)
    await fleet.clock.go(FORGET_S + 1)
    await keeper.pin(B, 1, 1.0)
    assert len(fleet.pinned("b@1")) == 1
    told = len(fleet.orders)
    await _a_while(fleet, keeper)
    assert len(fleet.orders) == told
    assert all("a@1" in one.holder.table for one in fleet.running.values())


async def test_the_loop_outlives_errors_and_is_woken_by_a_change(fleet: FakeFleet) -> None:
    """Whatever asking ends in, it asks again; cancelled, it ends."""
    asked = asyncio.Event()
    count = 0
    errors: list[Exception] = [RuntimeError("a defect"), DeadlineExceededError("too slow")]

    async def ask() -> list[ReplicaReport]:
        nonlocal count
        count += 1
        asked.set()
        if errors:
            raise errors.pop(0)
        return await FakeFleet.replicas(fleet)

    fleet.replicas = ask  # type: ignore[method-assign]
    keeper = _keeper(fleet)
    loop = asyncio.create_task(keeper.run())
    await asked.wait()
    await settle()
    assert not loop.done()
    with pytest.raises(DeadlineExceededError):
        await keeper.pin(A, 1, 1.0)
    count = 0
    await keeper.pin(A, 1, 1.0)
    await settle()
    assert count == 3, "to place it, to tell it, and the loop at once"
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_a_pin_holds_over_those_of_machines_whose_clocks_are_ahead(fleet: FakeFleet) -> None:
    """A keeper that has just started learns of them before it writes."""
    fleet.running["r2"].holder.table.write("a@1", None, fleet.clock.now + 100, "k2")
    keeper = _keeper(fleet)
    await keeper.pin(A, 1, 1.0)
    assert keeper.wanted(await fleet.replicas()) == {"a@1": 1}


async def test_replicas_that_are_all_away_are_told_nothing(fleet: FakeFleet) -> None:
    """While all take a configuration; the pins are known afterwards."""
    keeper = _keeper(fleet)
    await keeper.pin(A, 1, 1.0)
    away, fleet.running = fleet.running, {}
    assert await keeper.reconcile()
    with pytest.raises(OverloadedError):
        await fleet.order(fleet.orders[0])
    fleet.running = away


async def test_a_fleet_that_has_gone_is_not_counted(fleet: FakeFleet) -> None:
    """After the moment in which replicas may be away."""
    keeper = _keeper(fleet)
    await keeper.reconcile()
    away, fleet.running = fleet.running, {}
    await fleet.clock.go(GRACE_S)
    await keeper.reconcile()
    assert keeper.replica_count == len(away)
    await fleet.clock.go(0.1)
    await keeper.reconcile()
    assert keeper.replica_count == 0
    fleet.running = away


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["r1", "r2", "r3", "r4", "r5"])),
        st.tuples(st.just("remove"), st.sampled_from(["r1", "r2", "r3", "r4", "r5"])),
        st.tuples(
            st.just("pin"), st.tuples(st.sampled_from([A, B]), st.sampled_from([None, 1, 2]))
        ),
        st.tuples(st.just("unpin"), st.sampled_from([A, B])),
        st.tuples(st.just("reconcile"), st.none()),
    ),
    max_size=15,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(events, st.lists(st.integers(0, 2), min_size=15, max_size=15))
def test_any_history_ends_with_what_was_wanted_last(
    history: list[tuple[str, object]], chosen: list[int]
) -> None:
    """Three keepers, each event at one of them: all agree, and then nobody says a word."""

    async def play() -> None:
        fleet = FakeFleet(Clock())
        fleet.add("r0")
        keepers = [_keeper(fleet, f"k{number}") for number in range(3)]
        wanted: dict[ModelKey, int | None] = {A: 0, B: 0}
        for (event, what), number in zip(history, chosen, strict=False):
            await fleet.clock.go(1.0)
            keeper = keepers[number]
            # Another one looks at the same time, and carries out what it saw before the event.
            other = asyncio.create_task(keepers[(number + 1) % 3].reconcile())
            await asyncio.sleep(0)
            match event, what:
                case "add", str() if what not in fleet.running:
                    fleet.add(what)
                case "remove", str() if what in fleet.running:
                    await fleet.remove(what)
                case "pin", (ModelKey() as key, (int() | None) as copies):
                    await keeper.pin(key, copies, 1.0)
                    wanted[key] = copies
                case "unpin", ModelKey() as key:
                    await keeper.unpin(key)
                    wanted[key] = 0
                case "reconcile", _:
                    await keeper.reconcile()
            with suppress(OverloadedError):
                await other
        await _a_while(fleet, *keepers)
        for key, copies in wanted.items():
            count = len(fleet.running) if copies is None else min(copies, len(fleet.running))
            assert len(fleet.pinned(str(key)) & fleet.holding(str(key))) == count
            assert len(fleet.pinned(str(key))) == count
        told = len(fleet.orders)
        await _a_while(fleet, *keepers)
        assert len(fleet.orders) == told
        await fleet.aclose()

    asyncio.run(play())
