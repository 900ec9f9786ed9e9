"""What a fault test concludes from what it saw."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.faults.__main__ import known
from benchmarks.faults.nodes import App, StageError, wait_until
from benchmarks.faults.outcome import Outcome, judge
from benchmarks.faults.report import compose
from benchmarks.faults.strikes import code_of
from benchmarks.faults.watch import Held, Look, read_replicas
from benchmarks.machine import describe
from benchmarks.records import Record, Run
from benchmarks.session import environment
from serve_app.settings import AppArgs, DetectorConfig


def run(*statuses: int) -> Run:
    """Return a run of one request per second, each answered after a tenth, the last after one."""
    records = tuple(
        Record(0, float(at), float(at), at + 0.1, status) for at, status in enumerate(statuses)
    )
    last = replace(records[-1], done_s=records[-1].scheduled_s + 1)
    counted = {str(status): statuses.count(status) for status in statuses}
    return Run(
        records=(*records[:-1], last),
        limit_s=10.0,
        open_loop=True,
        client_cpu_s=0.0,
        errors=("503 busy",) if 503 in statuses else (),
        statuses=counted,
    )


def outcome(played: Run, *looks: Look, burst: tuple[int, ...] = ()) -> Outcome:
    """Judge a run with a fault after two seconds."""
    return judge(
        played,
        looks,
        [(3.0, 503), (9.0, 200)],
        burst,
        strike_at_s=2.0,
        name="replica",
        what="a detector is killed",
        front="HAProxy",
        recovered_s=4.0,
    )


def look(used_bytes: int) -> Look:
    """Return a look at one replica with a budget of 100 bytes."""
    return Look(1.0, 200, (Held(7, used_bytes, 100, ("a@1",)),))


def test_a_fault_that_costs_nothing_passes() -> None:
    """Every answer counts, those of the burst included."""
    found = outcome(run(200, 200, 200, 200), look(60), look(100), burst=(200, 200))
    assert found.passed
    assert (found.requests, found.failed, found.statuses) == (6, 0, {"200": 6})
    assert found.p50_before_s == pytest.approx(0.1)
    assert found.worst_s == pytest.approx(1.0)
    assert found.largest_share == 1.0
    assert found.probed == {"503": 1, "200": 1}


@pytest.mark.parametrize(
    "found",
    [
        outcome(run(200, 503, 200), look(60)),
        outcome(run(200, 200), look(60), burst=(200, 0)),
        outcome(run(200, 200), look(101)),
        replace(outcome(run(200, 200), look(60)), recovered_s=None),
    ],
    ids=["an answer", "an answer of the burst", "the budget", "the replica"],
)
def test_whatever_is_lost_fails_it(found: Outcome) -> None:
    """And the report says what it was."""
    assert not found.passed
    text = compose([found], describe(), 20.0)
    assert "**" in next(line for line in text.splitlines() if "is killed |" in line)
    assert ("503 busy" in text) == (found.failed == 1 and "503" in found.statuses)
    assert ("7 101 of 100" in text) == bool(found.over_budget)


def test_failed_looks_are_counted() -> None:
    """They say nothing of any budget."""
    found = outcome(run(200, 200), Look(0.0, 0), Look(0.2, 503), look(50))
    assert (found.looks, found.looks_failed) == (3, 2)
    assert found.passed


def test_outcomes_are_kept_from_run_to_run(tmp_path: Path) -> None:
    """So that faults can be played one at a time."""
    found = outcome(run(200, 200, 200), look(60))
    (tmp_path / "replica.json").write_text(json.dumps(found.as_json()))
    assert known(tmp_path) == [found]


def test_replicas_are_read_from_the_api() -> None:
    """Only what is resident counts as held."""
    models = [{"key": "a@1", "state": "resident"}, {"key": "b@1", "state": "loading"}]
    answer = {"pid": 3, "used_bytes": 5, "budget_bytes": 9, "models": models, "device": "cpu"}
    assert read_replicas({"replicas": [answer]}) == (Held(3, 5, 9, ("a@1",)),)


def test_the_application_is_deployed_with_known_settings(tmp_path: Path) -> None:
    """A changed argument is the only difference of a new version."""
    app = App(
        repository=tmp_path,
        cache_dir=tmp_path,
        port=8000,
        budget_bytes=2**20,
        args={"threads": 1},
    )
    (first,), (second,) = (
        config["applications"] for config in (app.config(), app.config(request_timeout_s=59))
    )
    assert AppArgs.parse(first["args"]).request_timeout_s == 60
    assert AppArgs.parse(second["args"]).request_timeout_s == 59
    assert first["deployments"] == second["deployments"]
    DetectorConfig.parse(first["deployments"][0]["user_config"])


def test_clusters_start_as_the_launcher_starts_ray(tmp_path: Path) -> None:
    """With a token of their own, and gRPC between the deployments."""
    first, second = (environment({"PATH": "/nowhere"}, tmp_path) for _ in range(2))
    assert first["RAY_SERVE_USE_GRPC_BY_DEFAULT"] == "1"
    assert first["RAY_AUTH_MODE"] == "token"
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_an_answer_is_named_by_its_code() -> None:
    """What is no problem document, as a proxy writes it, by its text."""
    assert code_of(httpx.Response(503, json={"code": "overloaded"})) == "overloaded"
    assert code_of(httpx.Response(502, text="Bad Gateway")) == "Bad Gateway"
    assert code_of(httpx.Response(502, json=["odd"])) == '["odd"]'


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was waited for, once its time is over."""
    monkeypatch.setattr("benchmarks.faults.nodes.time.sleep", lambda _: None)
    assert wait_until(lambda: True, 1.0, "nothing") < 1.0
    with pytest.raises(StageError, match="three detectors"):
        wait_until(lambda: False, 0.01, "three detectors")
