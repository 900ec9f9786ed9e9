"""The figures that follow from what a load generator saw."""

import json
import math

import pytest

from benchmarks.records import Record, Run, median, percentile


def make_run(*records: Record, open_loop: bool = True) -> Run:
    """Return a run of ten seconds."""
    return Run(records=records, limit_s=10.0, open_loop=open_loop, client_cpu_s=0.5)


def test_latency_counts_from_the_scheduled_arrival() -> None:
    """Time that a request spent before it could be sent belongs to it."""
    assert Record(0, scheduled_s=1.0, sent_s=3.0, done_s=3.5, status=200).latency_s == 2.5


def test_rate_and_goodput_count_answers_only() -> None:
    """A refused request is no answer, a late one is no good one."""
    run = make_run(
        Record(0, 0.0, 0.0, 0.1, 200),
        Record(0, 1.0, 1.0, 4.0, 200),
        Record(0, 2.0, 2.0, 2.1, 503),
        Record(0, 3.0, 3.0, 20.0, 0),
    )
    assert run.rate == pytest.approx(2 / 20)
    assert run.goodput(0.5) == pytest.approx(1 / 10)
    assert run.within(0.5) == 0.25
    assert run.within(5.0) == 0.5
    assert run.server_errors == 2


def test_a_closed_loops_goodput_is_over_the_time_that_it_took() -> None:
    """Its requests stop when they stop."""
    run = make_run(Record(0, 0.0, 0.0, 2.0, 200), open_loop=False)
    assert run.goodput(3.0) == 0.5


def test_warm_and_cold_are_apart() -> None:
    """Answers that do not say belong to neither."""
    run = make_run(
        Record(0, 0, 0, 1.0, 200, cold=True),
        Record(0, 0, 0, 2.0, 200, cold=False),
        Record(0, 0, 0, 3.0, 200),
        Record(0, 0, 0, 4.0, 500, cold=True),
    )
    assert run.cold_s == [1.0]
    assert run.warm_s == [2.0]


def test_a_run_survives_json() -> None:
    """What is saved is what was measured."""
    run = make_run(Record(1, 0.5, 0.6, 1.0, 200, cold=True), Record(2, 1.0, 1.0, 2.0, 0))
    assert Run.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_nothing_has_no_percentile() -> None:
    """A figure without measurements is not a number, and not zero."""
    assert math.isnan(percentile([], 99))
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert make_run().rate == 0.0
