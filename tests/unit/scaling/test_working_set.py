"""The working set of a replica: what counts, what is forgotten, what is regretted."""

import time

import pytest

from serve_app.scaling.working_set import MAX_HOT, DecayingRate, WorkingSet


def _ask(working_set: WorkingSet, key: str, *times: float, size: int = 10) -> list[bool]:
    regrets = []
    for now in times:
        regrets.append(working_set.asked(key, now))
        working_set.sized(key, size)
    return regrets


def test_a_model_counts_once_it_was_asked_for_twice_within_the_window() -> None:
    """A long tail of single requests is no working set."""
    working_set = WorkingSet(60.0)
    for number in range(500):
        _ask(working_set, f"rare{number}", 1.0)
    _ask(working_set, "a", 1.0, 30.0, size=7)
    state = working_set.state(61.0)
    assert (state.bytes, state.models, state.asked) == (7, 1, 501)
    assert working_set.state(62.0).bytes == 0, "its first request is too old"
    assert working_set.state(1000.0).asked == 0


def test_pinned_models_are_left_out() -> None:
    """Their bytes are counted elsewhere."""
    working_set = WorkingSet(60.0)
    _ask(working_set, "a", 1.0, 2.0)
    _ask(working_set, "b", 1.0, 2.0, size=5)
    state = working_set.state(3.0, without={"a"})
    assert (state.bytes, dict(state.hot)) == (5, {"b": 5})


def test_an_eviction_is_regretted_once_and_within_the_window() -> None:
    """Not the second request after it, nor one that comes late, nor one without an eviction."""
    working_set = WorkingSet(60.0)
    assert _ask(working_set, "a", 1.0) == [False]
    working_set.evicted("a", 2.0)
    assert _ask(working_set, "a", 3.0, 4.0) == [True, False]
    assert working_set.state(4.0).regrets_per_s > 0
    _ask(working_set, "b", 10.0)
    working_set.evicted("b", 11.0)
    assert _ask(working_set, "b", 72.0) == [False]
    working_set.evicted("never asked for", 72.0)
    assert _ask(working_set, "never asked for", 73.0) == [False]


def test_state_is_bounded_with_any_number_of_ids() -> None:
    """The longest unasked go first; what is asked for again and again stays."""
    working_set = WorkingSet(1000.0, max_keys=100)
    started = time.perf_counter()
    for number in range(20_000):
        working_set.asked(f"m{number}", number / 1000)
        working_set.asked("hot", number / 1000)
    assert time.perf_counter() - started < 5.0
    assert len(working_set) == 100
    working_set.sized("hot", 3)
    working_set.sized("m1", 3)
    assert len(working_set) == 100
    assert working_set.state(20.0).bytes == 3


def test_the_models_asked_for_most_are_told_by_name() -> None:
    """No more than so many, lately asked for before formerly."""
    working_set = WorkingSet(60.0)
    for number in range(100):
        for again in range(2 + number):
            _ask(working_set, f"m{number}", again / 100)
    state = working_set.state(1.0)
    assert set(state.hot) == {f"m{number}" for number in range(100 - MAX_HOT, 100)}
    assert state.bytes == 1000


def test_rates_follow_the_last_seconds() -> None:
    """A steady rate is found; it fades when nothing comes."""
    rate = DecayingRate(5.0)
    for number in range(400):
        rate.add(number / 10)
    assert rate.per_s(40.0) == pytest.approx(10.0, rel=0.05)
    assert rate.per_s(70.0) < 0.05


def test_a_clock_that_stands_still_or_a_wrong_window_does_no_harm() -> None:
    """Times need not grow."""
    working_set = WorkingSet(5.0)
    assert _ask(working_set, "a", 3.0, 3.0, 2.0) == [False] * 3
    assert working_set.state(3.0).models == 1
    with pytest.raises(ValueError, match="window_s"):
        WorkingSet(0.0)
