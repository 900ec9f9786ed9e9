"""Traces follow from their seed and offer what they say."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.workloads import (
    W0,
    W1,
    W2,
    W3,
    W4,
    Workload,
    closed_loop,
    counts,
    in_turn,
    open_loop,
    popularity,
    surge_share,
)

OPEN = (W1, W2, W3, W4)


@pytest.mark.parametrize("workload", OPEN, ids=lambda workload: workload.name)
def test_an_open_loop_offers_exactly_its_rate(workload: Workload) -> None:
    """However bursty, the arrivals are as many as asked for, in order and within the time."""
    trace = open_loop(workload, duration_s=20, rate=12.5)
    times = [arrival.at_s for arrival in trace.arrivals]
    assert len(times) == 250
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= 20
    assert all(0 <= arrival.model < workload.models for arrival in trace.arrivals)


def test_a_trace_follows_from_its_seed() -> None:
    """The same seed gives the same requests, another seed others."""
    assert open_loop(W2, 10, 20) == open_loop(W2, 10, 20)
    assert open_loop(W2, 10, 20) != open_loop(replace(W2, seed=99), 10, 20)
    zipf = Workload(name="zipf", models=24, alpha=1.0, concurrency=4)
    assert closed_loop(zipf, 10, 50) == closed_loop(zipf, 10, 50)
    assert closed_loop(zipf, 10, 50) != closed_loop(replace(zipf, seed=1), 10, 50)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_vary_as_asked_for(cv: float) -> None:
    """The coefficient of variation of a long trace's gaps is the workload's."""
    trace = open_loop(Workload(name="long", models=1, cv=cv), duration_s=1000, rate=50)
    gaps = np.diff([arrival.at_s for arrival in trace.arrivals])
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_popularity_falls_with_a_power_of_the_rank() -> None:
    """The shares sum to one; alpha 0 is uniform, alpha 1 is Zipf's."""
    assert popularity(5, 0).tolist() == pytest.approx([0.2] * 5)
    shares = popularity(24, 1.0)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[3] == pytest.approx(4)
    with pytest.raises(ValueError, match="at least 1"):
        popularity(0, 1.0)


def test_models_are_asked_for_by_their_popularity() -> None:
    """A long trace's counts come near the shares."""
    trace = closed_loop(Workload(name="zipf", models=4, alpha=1.0, concurrency=2), 1, count=20_000)
    found = np.array(counts(4, trace.arrivals)) / 20_000
    assert found == pytest.approx(popularity(4, 1.0), abs=0.02)


def test_a_surge_leaves_its_model_cold_until_half_time() -> None:
    """Then, within a second, it takes half of the requests."""
    assert surge_share(9.9, 20) == 0
    assert surge_share(10.5, 20) == pytest.approx(0.25)
    assert surge_share(15, 20) == 0.5
    trace = open_loop(replace(W4, cv=1.0), duration_s=40, rate=100)
    last = W4.models - 1
    assert not [a for a in trace.arrivals if a.model == last and a.at_s < 20]
    late = [arrival.model == last for arrival in trace.arrivals if arrival.at_s > 21]
    assert sum(late) / len(late) == pytest.approx(0.5, abs=0.05)


def test_in_turn_asks_for_each_model_once_a_round() -> None:
    """One client, one model after the other."""
    trace = in_turn(3, 2, 10)
    assert [arrival.model for arrival in trace.arrivals] == [0, 1, 2, 0, 1, 2]
    assert trace.concurrency == 1


def test_an_open_loop_is_no_closed_one() -> None:
    """Without clients there is nobody to wait for an answer."""
    assert closed_loop(W0, 1, 5).concurrency == 8
    with pytest.raises(ValueError, match="no concurrency"):
        closed_loop(W1, 1, 5)
