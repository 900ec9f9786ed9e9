"""The table of pins: the last write holds, in whatever order writes are heard of."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.fleet.pins import FORGET_S, PinTable, more_of
from serve_app.types import Pin

pins = st.builds(
    Pin,
    st.sampled_from("abc"),
    st.sampled_from([None, 0, 1, 2]),
    st.floats(0, 5).map(round),
    st.sampled_from("xyz"),
)
# No author writes twice at the same time.
histories = st.lists(pins, unique_by=lambda pin: (pin.key, pin.time_s, pin.author))


@given(histories, st.randoms())
def test_the_order_of_merges_makes_no_difference(history: list[Pin], random: object) -> None:
    """Twice the same news, in any order, give the same table."""
    shuffled = history * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert PinTable(history).pins == PinTable(shuffled).pins
    for pin in history:
        assert PinTable(history).covers([pin], 0.0)
    for held in PinTable(history).pins:
        assert (held.time_s, held.author) == max(
            (pin.time_s, pin.author) for pin in history if pin.key == held.key
        )


@given(histories, st.floats(-10, 10))
def test_a_write_holds_over_all_that_was_known(history: list[Pin], now_s: float) -> None:
    """Even where the writer's clock is behind the others'."""
    writer, other = PinTable(history), PinTable(history)
    writer.write("a", 7, now_s, "me")
    assert not other.covers(writer.pins, now_s)
    other.merge(writer.pins)
    assert other.wanted({})["a"] == 7
    assert other.pins == writer.pins


def test_what_is_wanted() -> None:
    """`user_config` until someone writes; the longest pinned first; unpinned ones not at all."""
    table = PinTable()
    table.write("late", None, 9.0, "me")
    table.write("early", 2, 5.0, "me")
    table.write("gone", 0, 7.0, "me")
    configured = {"z": 1, "gone": 3, "early": None}
    assert list(table.wanted(configured).items()) == [("z", 1), ("early", 2), ("late", None)]


def test_unpinnings_are_forgotten_unless_they_hold_over_the_configuration() -> None:
    """The table does not grow with every model that was ever pinned."""
    table = PinTable()
    for key, copies in (("a", 0), ("b", 0), ("c", 2)):
        table.write(key, copies, 100.0, "me")
    table.forget(100.0 + FORGET_S / 2, {})
    assert [pin.key for pin in table.pins] == ["a", "b", "c"]
    table.forget(101.0 + FORGET_S, {"b": None})
    assert [pin.key for pin in table.pins] == ["b", "c"]


def test_old_unpinnings_are_no_news() -> None:
    """Who does not know of one may have forgotten it; but never one over the configuration."""
    known = PinTable([Pin("a", 0, 100.0, "me"), Pin("b", 0, 100.0, "me")])
    only_b = PinTable([Pin("b", 0, 100.0, "me")])
    assert not only_b.covers(known.pins, 99.0 + FORGET_S / 2)
    assert only_b.covers(known.pins, 100.0 + FORGET_S / 2)
    assert not only_b.covers(known.pins, 100.0 + FORGET_S, {"a": None})
    slept = PinTable([Pin("a", 1, 50.0, "me"), Pin("b", 0, 100.0, "me")])
    assert not slept.covers(known.pins, 100.0 + FORGET_S), "it would bring the pin back"
    pinned = PinTable([Pin("c", 1, 0.0, "me")])
    assert not known.covers(pinned.pins, 100.0 + FORGET_S), "a pin is never too old"


def test_the_greater_number_of_copies() -> None:
    """None means all."""
    assert more_of(1, 3) == 3
    assert more_of(None, 3) is more_of(0, None) is None
