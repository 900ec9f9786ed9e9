"""Counts are right, and nothing stays that nobody reports."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.routing.in_flight import InFlight


def made() -> InFlight:
    """Loads are expected for 3 s, requests forgotten after 300 s."""
    return InFlight(visible_s=3.0, in_flight_s=300.0)


def test_requests_are_counted_until_they_end() -> None:
    """By replica and by model."""
    flight = made()
    flight.sent("m", "a", "1", 0.0, new=False)
    flight.sent("m", "b", "2", 0.0, new=False)
    assert (flight.of_model("m"), flight.at_replica("a"), flight.at_replica("b")) == (2, 1, 1)
    flight.completed("1")
    flight.completed("1")
    flight.completed("never sent")
    assert (flight.of_model("m"), flight.at_replica("a"), flight.at_replica("b")) == (1, 0, 1)


def test_calls_that_share_an_id_end_each_at_its_replica() -> None:
    """As the calls of one parent do."""
    flight = made()
    flight.sent("m", "a", "parent", 0.0, new=False)
    flight.sent("n", "b", "parent", 0.0, new=False)
    flight.completed("parent", "b")
    assert (flight.at_replica("a"), flight.at_replica("b")) == (1, 0)
    assert flight.of_model("n") == 0


def test_a_load_is_expected_until_it_shows_or_for_a_while() -> None:
    """From the first request for it on."""
    flight = made()
    flight.sent("m", "a", "1", 1.0, new=True)
    flight.sent("m", "a", "2", 2.0, new=True)
    assert flight.expected("m") == {"a": 1.0}
    flight.expire(4.0)
    assert flight.expected("m") == {"a": 1.0}
    flight.expire(4.1)
    assert not flight.expected("m")
    flight.sent("m", "b", "3", 5.0, new=True)
    flight.arrived("m", "b")
    assert not flight.expected("m")
    flight.sent("m", "b", "4", 6.0, new=True)  # it was evicted meanwhile
    flight.expire(8.1)
    assert flight.expected("m") == {"b": 6.0}


def test_a_replica_that_is_away_loads_nothing() -> None:
    """Its requests count until they end: it may be back before that."""
    flight = made()
    for index, replica in enumerate("aab"):
        flight.sent(f"m{index}", replica, f"{index}", 0.0, new=True)
    flight.away("a")
    assert flight.expecting() == [("m2", "b")]
    assert flight.at_replica("a") == 2
    flight.completed("0", "a")
    flight.completed("1", "a")
    assert flight.at_replica("a") == 0
    assert flight.of_model("m0") == flight.of_model("m1") == 0


def test_what_is_never_reported_is_forgotten() -> None:
    """10,000 models whose requests never ended leave nothing behind."""
    flight = made()
    for index in range(10_000):
        flight.sent(f"m{index}", "a", f"{index}", index * 0.001, new=True)
    flight.expire(400.0)
    assert len(flight) == 0
    assert flight.at_replica("a") == 0
    assert not flight._by_request
    assert not flight._by_model
    assert not flight.expecting()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("sent"), st.sampled_from("mn"), st.sampled_from("ab")),
            st.tuples(st.just("done"), st.sampled_from("mn"), st.sampled_from("ab")),
            st.tuples(st.just("away"), st.just(""), st.sampled_from("ab")),
            st.tuples(st.just("late"), st.just(""), st.just("")),
        ),
        max_size=60,
    )
)
def test_counts_add_up_whatever_happens(steps: list[tuple[str, str, str]]) -> None:
    """By replica, by model and in all there are as many requests as are open."""
    flight, now = made(), 0.0
    for what, model, replica in steps:
        now += 40.0 if what == "late" else 0.1
        if what == "sent":
            flight.sent(model, replica, f"id-{model}", now, new=True)
        elif what == "done":
            flight.completed(f"id-{model}", replica)
        elif what == "away":
            flight.away(replica)
        flight.expire(now)
        open_ = len(flight._by_age)
        assert sum(map(flight.at_replica, "ab")) == sum(map(flight.of_model, "mn")) == open_
        assert sum(map(len, flight._by_request.values())) == open_
        assert len(flight.expecting()) <= 4
