"""What one replica pins: its configuration, orders, and loads that are tried again."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.errors import ModelBrokenError
from serve_app.fleet.holder import ERROR_KEPT_S, FIRST_RETRY_S, LAST_RETRY_S
from serve_app.fleet.pins import FORGET_S, PinTable
from serve_app.fleet.plan import Orders
from serve_app.types import Copies, Pin
from tests.unit.fleet.fakes import Clock, Replica, settle


@pytest.fixture
def clock() -> Clock:
    """Return the clock of retries."""
    return Clock()


@pytest.fixture
async def replica(clock: Clock) -> AsyncIterator[Replica]:
    """Return the replica r1."""
    replica = Replica("r1", clock)
    yield replica
    await replica.holder.aclose()


def _orders(*keys: str, spare: tuple[str, ...] = (), **writes: Copies) -> Orders:
    table = PinTable()
    for time_s, (key, copies) in enumerate(writes.items()):
        table.write(key, copies, time_s, "keeper")
    pinned = {"r1": frozenset(keys), "r2": frozenset({"other"})}
    return Orders(table.pins, pinned, spare={"r1": frozenset(spare)})


async def test_it_takes_what_names_it(replica: Replica) -> None:
    """Pins and loads what stands under its id, and lets go of what no longer does."""
    replica.holder.take(_orders("a", "b", a=1, b=1))
    assert replica.holder.pinned == {"a", "b"}
    await replica.holder.tried()
    assert replica.models == {"a", "b"}
    replica.holder.take(_orders("b", a=1, b=1))
    replica.holder.take(_orders("b", a=1, b=1))
    await settle()
    assert replica.holder.pinned == {"b"}
    assert replica.loads == ["a", "b"], "the same orders twice load nothing again"


async def test_what_is_wanted_everywhere_needs_no_naming(replica: Replica) -> None:
    """A replica that hears of it pins it by itself."""
    replica.holder.take(_orders(a=None))
    assert replica.holder.pinned == {"a"}


async def test_orders_given_without_a_later_pin_are_not_followed(replica: Replica) -> None:
    """But what is news in them is kept: another keeper was faster, not wrong."""
    replica.holder.take(_orders("b", a=1, b=1))
    replica.holder.take(_orders("a", a=1))
    assert replica.holder.pinned == {"b"}
    older = Orders(_orders(a=1, b=1, c=0).pins[2:], {"r1": frozenset({"a"})})
    replica.holder.take(older)
    assert replica.holder.pinned == {"b"}
    assert "c" in replica.holder.table
    unpins = PinTable()
    unpins.write("b", 0, 9.0, "keeper")
    replica.holder.take(Orders(unpins.pins, {"r1": frozenset({"a"})}))
    assert replica.holder.pinned == set(), "an unpinning is never too late"


async def test_a_clock_that_lags_ignores_no_orders(replica: Replica, clock: Clock) -> None:
    """The keepers forget an unpinning minutes before this replica would."""
    lag_s = 120.0
    replica.holder.table.write("old", 0, clock.now + lag_s, "keeper")
    await clock.go(FORGET_S)
    orders = PinTable([Pin("new", 1, clock.now + lag_s, "keeper")])
    replica.holder.take(Orders(orders.pins, {"r1": frozenset({"new"})}))
    assert "old" in replica.holder.table, "its own hour is not over"
    assert replica.holder.pinned == {"new"}


async def test_the_configuration_pins_at_once(replica: Replica) -> None:
    """What is wanted everywhere and the replica's own share; what is removed is let go."""
    replica.holder.configure({"all": None, "mine": 2, "theirs": 1}, ["all", "mine"])
    assert replica.holder.pinned == {"all", "mine"}
    replica.holder.configure({"all": None, "mine": 2, "theirs": 1}, ["theirs"])
    assert replica.holder.pinned == {"all", "mine"}, "another rank alone moves nothing"
    replica.holder.configure({"theirs": 1}, [])
    assert replica.holder.pinned == set()


async def test_the_last_writer_wins_over_the_configuration_and_back(replica: Replica) -> None:
    """An unpin holds until the configuration changes; at a start the table decides."""
    replica.holder.configure({"a": None}, ["a"])
    replica.holder.take(_orders(a=0))
    assert replica.holder.pinned == set()
    replica.holder.configure({"a": None, "b": 1}, ["a"])
    assert replica.holder.pinned == set(), "what it says of a has not changed"
    replica.holder.configure({"b": 1}, [])
    replica.holder.configure({"a": None, "b": 1}, ["a"])
    assert replica.holder.pinned == {"a"}


async def test_a_pin_that_fails_is_tried_again_later_and_later(
    replica: Replica, clock: Clock
) -> None:
    """Others are not held up; the reason is told until it is loaded."""
    replica.broken["a"] = ModelBrokenError("cut short")
    replica.holder.take(_orders("a", "b", a=1, b=1))
    await replica.holder.tried()
    assert replica.models == {"b"}
    assert replica.holder.errors == {"a": "model_broken: cut short"}
    await clock.go(FIRST_RETRY_S)
    assert replica.loads.count("a") == 2
    await clock.go(FIRST_RETRY_S)
    assert replica.loads.count("a") == 2, "the second pause is longer"
    for _ in range(10):
        await clock.go(LAST_RETRY_S)
    assert replica.loads.count("a") == 12, "but there is a longest"
    del replica.broken["a"]
    await clock.go(LAST_RETRY_S)
    assert "a" in replica.models
    assert replica.holder.errors == {}
    await clock.go(LAST_RETRY_S)
    assert replica.loads.count("a") == 13


async def test_a_failure_is_remembered_for_a_while_after_the_pin_went_elsewhere(
    replica: Replica, clock: Clock
) -> None:
    """Otherwise it would come back at once; and nothing is tried here any more."""
    replica.broken["a"] = ModelBrokenError("cut short")
    replica.holder.take(_orders("a", a=1))
    await replica.holder.tried()
    replica.holder.take(_orders(a=1))
    await clock.go(ERROR_KEPT_S - 1)
    assert replica.loads == ["a"]
    assert set(replica.holder.errors) == {"a"}
    await clock.go(1)
    assert replica.holder.errors == {}


async def test_a_defect_does_not_end_the_pin(replica: Replica, clock: Clock) -> None:
    """An unexpected error is told and tried again, too."""
    replica.broken["a"] = ValueError("a defect")  # type: ignore[assignment]
    replica.holder.take(_orders("a", a=1))
    await replica.holder.tried()
    assert replica.holder.errors == {"a": "ValueError: a defect"}
    replica.broken.clear()
    await clock.go(FIRST_RETRY_S)
    assert replica.models == {"a"}


async def test_second_copies_are_loaded_once_and_not_pinned(replica: Replica) -> None:
    """One that cannot be loaded harms nothing."""
    replica.broken["a"] = ModelBrokenError("cut short")
    replica.holder.take(_orders(spare=("a", "b")))
    await settle()
    assert replica.models == {"b"}
    assert replica.spare_loads == ["a", "b"]
    assert replica.holder.pinned == set()
    assert replica.holder.errors == {}


async def test_a_defect_in_one_second_copy_ends_no_other(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the next orders are followed as well."""
    replica.broken["a"] = ValueError("a defect")  # type: ignore[assignment]
    replica.holder.take(_orders(spare=("a", "b")))
    await settle()
    assert replica.models == {"b"}
    assert "second copy of a failed unexpectedly" in caplog.text
    replica.holder.take(_orders(spare=("c",)))
    await settle()
    assert replica.models == {"b", "c"}


async def test_second_copies_that_are_no_longer_wanted_are_not_begun(replica: Replica) -> None:
    """The last orders count: what they leave out is skipped, what they add is loaded."""
    replica.holder.take(_orders(spare=("a", "b", "c")))
    await asyncio.sleep(0)
    replica.holder.take(_orders(spare=("c", "d")))
    await settle()
    assert replica.models == {"a", "c", "d"}, "what had begun ends"
    replica.holder.take(_orders(spare=("e", "f")))
    await asyncio.sleep(0)
    replica.holder.take(_orders())
    await settle()
    assert replica.models == {"a", "c", "d", "e"}
