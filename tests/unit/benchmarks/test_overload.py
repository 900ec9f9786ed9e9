"""What the measurement of an overload is made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_client import Response
from benchmarks.load import retry_after_s
from benchmarks.machine import describe
from benchmarks.overload_report import compose, summary
from benchmarks.records import Record, Run
from benchmarks.servers.ours import make_config
from serve_app.settings import AppArgs

SCALE: dict[str, Any] = {
    "max_wait_s": 3.0,
    "load_s": 20.0,
    "clients": 16,
    "capacity_s": 10.0,
    "idle": 40,
    "image_bytes": 2048,
}


def make_run() -> Run:
    """Return a run of ten seconds: two answers, two refusals, one request without any."""
    records = (
        Record(0, 0.0, 0.0, 0.5, 200),
        Record(0, 1.0, 1.0, 3.0, 200),
        Record(0, 2.0, 2.1, 2.2, 503, None, 4.0),
        Record(0, 3.0, 3.0, 3.3, 503),
        Record(0, 4.0, 4.0, 5.0, 0),
    )
    return Run(records=records, limit_s=10.0, open_loop=True, client_cpu_s=1.0)


def test_a_summary_tells_answers_from_refusals() -> None:
    """Latency is that of answers alone; a refusal's own time counts from its sending."""
    found = summary(make_run())
    assert (found["offered"], found["answered"]) == (0.5, pytest.approx(2 / 5))
    assert (found["requests"], found["refused"], found["other"]) == (5, 2, 1)
    assert (found["p50_s"], found["worst_s"]) == (1.25, 2.0)
    assert found["retry_after_s"] == [4.0, 4.0, 4.0]
    assert found["without_retry_after"] == 1
    assert found["first_refused_s"] == 2.0
    assert found["refusal_p50_s"] == pytest.approx(0.2)


def test_where_nothing_is_refused_nothing_is_said_of_it() -> None:
    """Nor of latencies, where nothing is answered."""
    run = make_run()
    calm = summary(replace(run, records=run.records[:2]))
    assert (calm["retry_after_s"], calm["first_refused_s"], calm["refused"]) == (None, None, 0)
    dead = summary(replace(run, records=run.records[4:]))
    assert (dead["p50_s"], dead["p99_s"], dead["worst_s"]) == (None, None, None)


def test_the_report_sets_both_bounds_side_by_side() -> None:
    """A row for each load, and what there is not as a dash."""
    calm = summary(replace(make_run(), records=make_run().records[:2]))
    results = [
        {
            "bound": bound,
            "machine": describe().as_json(),
            "capacity": 30.0,
            "idle_p50_s": 0.045,
            "loads": [{"factor": factor, "after_s": 0.05, **load} for factor, load in loads],
        }
        for bound, loads in (
            ("default", [(0.5, calm)]),
            ("null", [(4.0, summary(make_run()))]),
        )
    ]
    text = compose(results, SCALE)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| 3 | 0.5 x | 0.2 | 0.7 | 0% | 0 | 1.25 | 1.98 | 2.00 | - | - | - | 50 |",
        "| null | 4 x | 0.5 | 0.4 | 40% | 1 | 1.25 | 1.98 | 2.00 | 4 (4 to 4) | 2.00 | 200 | 50 |",
    ]
    assert "Refusals without `Retry-After`: 1." in text
    assert "- `null`: 30.0 answers/s; alone, a request takes 45 ms (median of 40)." in text


def test_retry_after_is_read_from_the_answer() -> None:
    """As seconds."""
    assert retry_after_s(Response(503, {"retry-after": "4"})) == 4.0
    assert retry_after_s(Response(200)) is None


def test_the_bound_is_a_setting_of_the_server(tmp_path: Path) -> None:
    """Left at its default, or written as it is given."""
    (plain,) = make_config(tmp_path, 1)["applications"]
    assert "max_wait_s" not in plain["args"]
    (unbounded,) = make_config(tmp_path, 1, more={"max_wait_s": None})["applications"]
    assert AppArgs.parse(unbounded["args"]).max_wait_s is None
