"""Second copies that keepers have made before the fleet shrinks."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.fleet.keeper import GRACE_S, IDLE_PERIOD_S, FleetKeeper
from serve_app.types import ModelKey, ReplicaReport, ResidentModel
from tests.unit.fleet.fakes import SIZE, FakeFleet, report

A = ModelKey("a", "1")


def _wait_for(fleet: FakeFleet, spare_copies_after_s: float | None) -> None:
    """Set that in the `user_config` of all replicas."""

    async def reports() -> list[ReplicaReport]:
        found = await FakeFleet.replicas(fleet)
        return [replace(one, spare_copies_after_s=spare_copies_after_s) for one in found]

    fleet.replicas = reports  # type: ignore[method-assign]


def _second(fleet: FakeFleet) -> list[str]:
    """Return where a second copy is."""
    return [name for name, one in fleet.running.items() if one.holder.second_copies]


async def test_before_the_fleet_shrinks_pinned_and_hot_models_get_a_second_copy(
    fleet: FakeFleet,
) -> None:
    """Once fewer would do for long enough, and back when they would not."""
    _wait_for(fleet, 10.0)
    needed = 2

    def count(_: Sequence[ReplicaReport]) -> int:
        return needed

    keeper = FleetKeeper(fleet, needed=count, wall_clock=fleet.clock, clock=fleet.clock)
    await keeper.pin(A, 1, 1.0)
    await fleet.clock.go(9)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 1
    await fleet.clock.go(1)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1") & fleet.holding("a@1")) == 2
    needed = 3
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 1
    needed = 2
    await keeper.reconcile()
    await fleet.clock.go(10)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 2, "the wait begins anew"
    for _ in range(2):
        await fleet.clock.go(3 * 10 + 2 * IDLE_PERIOD_S)
        await keeper.reconcile()
        assert len(fleet.pinned("a@1")) == 2, "kept for as long as fewer would do"
    assert len(_second(fleet)) == 1
    await fleet.remove(min(set(fleet.running) - fleet.pinned("a@1")))
    needed = 1
    await fleet.clock.go(GRACE_S + 1)
    await keeper.reconcile()
    await fleet.clock.go(10)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 2, "one has gone, the next one may"
    assert len(_second(fleet)) == 1
    needed = 2
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 1
    assert not _second(fleet)


async def test_second_copies_go_when_they_are_no_longer_asked_for(fleet: FakeFleet) -> None:
    """`spare_copies_after_s: null` is never, also for those that were made before."""
    _wait_for(fleet, 10.0)
    keeper = FleetKeeper(fleet, needed=lambda _: 2, wall_clock=fleet.clock, clock=fleet.clock)
    await keeper.pin(A, 1, 1.0)
    await fleet.clock.go(10)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 2
    _wait_for(fleet, None)
    await keeper.reconcile()
    assert len(fleet.pinned("a@1")) == 1


async def test_nobody_is_told_where_nobody_answers(fleet: FakeFleet) -> None:
    """Who takes a new configuration would take it for the end of all pins."""
    hot = ResidentModel("hot@1", "resident", SIZE, 0, pinned=False, idle_s=1)
    answers = [report("r1", models=[hot], spare_after_s=10.0), report("r2", spare_after_s=10.0)]

    async def reports() -> list[ReplicaReport]:
        return answers

    fleet.replicas = reports  # type: ignore[method-assign]
    keeper = FleetKeeper(fleet, needed=lambda _: 1, wall_clock=fleet.clock, clock=fleet.clock)
    await keeper.reconcile()
    await fleet.clock.go(10)
    await keeper.reconcile()
    assert [bool(orders.spare) for orders in fleet.orders] == [True]
    answers.clear()
    await keeper.reconcile()
    assert len(fleet.orders) == 1


async def test_keepers_that_began_at_different_times_agree(fleet: FakeFleet) -> None:
    """What one has made before a replica goes, one that came later takes for what it is."""
    _wait_for(fleet, 10.0)
    keepers = [
        FleetKeeper(fleet, needed=lambda _: 2, wall_clock=fleet.clock, clock=fleet.clock)
        for _ in range(2)
    ]
    await keepers[0].pin(A, 1, 1.0)
    await fleet.clock.go(10)
    await keepers[0].reconcile()
    told = len(fleet.orders)
    assert len(fleet.pinned("a@1")) == 2
    for _ in range(60):
        await fleet.clock.go(2)
        for keeper in keepers:
            await keeper.reconcile()
        assert len(fleet.pinned("a@1")) == 2
    assert len(fleet.orders) == told
    await keepers[1].pin(A, 2, 1.0)
    assert len(fleet.pinned("a@1")) == 2
    assert not _second(fleet), "both are wanted now"
    await keepers[0].pin(A, 1, 1.0)
    await keepers[1].reconcile()
    assert len(fleet.pinned("a@1")) == 1, "what somebody wants holds at once"


async def test_second_copies_are_not_made_for_ever(fleet: FakeFleet) -> None:
    """A fleet that is kept larger than it need be makes its copies once."""
    for name in list(fleet.running)[1:]:
        await fleet.remove(name)
    hot = ResidentModel("hot@1", "resident", SIZE, 0, pinned=False, idle_s=1)
    one, other = (
        report(name, models=models, spare_after_s=30.0)
        for name, models in (("r1", [hot]), ("r2", []))
    )

    async def reports() -> list[ReplicaReport]:
        return [one, other]

    fleet.replicas = reports  # type: ignore[method-assign]
    keeper = FleetKeeper(fleet, needed=lambda _: 1, wall_clock=fleet.clock, clock=fleet.clock)
    told = []
    for _ in range(360):
        await fleet.clock.go(IDLE_PERIOD_S)
        await keeper.reconcile()
        told.append(len(fleet.orders))
    assert told[2] == 0, "too soon"
    assert told[3] == 1
    assert told[11] == told[-1], "the window is over"
    assert fleet.orders[-2].spare == {"r2": {"hot@1"}}
    assert fleet.orders[-1].spare == {}, "and said to be over, once"
