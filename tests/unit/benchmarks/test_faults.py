"""What a fault test concludes from what it saw."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.faults.__main__ import known
from benchmarks.faults.nodes import App, StageError, wait_until
from benchmarks.faults.outcome import Outcome, changes, judge
from benchmarks.faults.report import compose
from benchmarks.faults.strikes import FAULTS, code_of
from benchmarks.faults.stuck import HangingEngine, build
from benchmarks.faults.trigger import trigger
from benchmarks.faults.watch import Held, Look, read_replicas
from benchmarks.machine import describe
from benchmarks.records import Record, Run
from benchmarks.session import environment
from serve_app import app
from serve_app.replica.deployment import Detector
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
        spares_under_way=True,
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


def test_requests_that_were_under_way_may_be_excused() -> None:
    """Those that a dying ingress had in its hands; none that came later."""
    found = judge(
        run(200, 200, 0, 200),  # the third is sent as the fault is made
        [],
        [],
        (200, 0),
        strike_at_s=2.05,
        spares_under_way=False,
        name="ingress",
        what="an ingress is killed",
        front="HAProxy",
        recovered_s=4.0,
    )
    assert (found.failed, found.failed_later, found.under_way) == (2, 0, 3)
    assert found.passed
    assert not replace(found, spares_under_way=True).passed
    assert not replace(found, failed_later=1).passed
    assert found.failed_until_s is None
    said = (
        "3 requests were under way to both, 2 failed, 0 of them sent after the end of the process"
    )
    assert f"{said}." in compose([found], describe(), 20.0)
    later = judge(
        run(200, 200, 200, 503),
        [],
        [],
        strike_at_s=2.5,
        spares_under_way=False,
        name="ingress",
        what="an ingress is killed",
        front="HAProxy",
        recovered_s=4.0,
    )
    assert (later.failed_later, later.failed_until_s, later.passed) == (1, 0.5, False)
    assert "the last 0.50 s after it." in compose([later], describe(), 20.0)


def test_slow_answers_are_told_from_the_fault_on() -> None:
    """How many took over a second, and when the last of them was sent."""
    found = outcome(run(200, 200, 200, 200))
    assert (found.slow, found.slow_until_s) == (0, None)
    slow = run(200, 200, 200, 200)
    last = replace(slow.records[-1], done_s=slow.records[-1].sent_s + 1.5)
    found = outcome(replace(slow, records=(*slow.records[:-1], last)))
    assert (found.slow, found.slow_until_s) == (1, 1.0)
    assert "| 1, until 1 s |" in compose([found], describe(), 20.0)


def test_loads_before_and_since_are_told_apart() -> None:
    """The first belong to no fault."""
    played = run(200, 200, 200, 200)
    cold = tuple(replace(record, cold=at != 2) for at, record in enumerate(played.records))
    found = outcome(replace(played, records=cold))
    assert (found.cold_before, found.cold) == (2, 3)
    assert "| 2 / 1 |" in compose([found], describe(), 20.0)


def test_what_replicas_load_and_evict_is_kept() -> None:
    """Each replica is compared with its own last look; a new one has nothing to compare."""
    looks = [
        Look(1.0, 200, (Held(7, 1, 9, ("a@1", "b@1")), Held(8, 1, 9, ()))),
        Look(1.2, 503),
        Look(1.5, 200, (Held(7, 1, 9, ("c@1", "a@1")), Held(9, 1, 9, ("d@1",)))),
    ]
    assert list(changes(looks)) == ["1.5 s: 7 +[c@1] -[b@1]"]


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


class Open:
    """What an engine opens: it answers with what it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def predict(self, inputs: Sequence[object]) -> list[object]:
        """Answer."""
        return list(inputs)


class Opener:
    """An engine."""

    def open(self, path: Path) -> Open:
        """Open a model."""
        return Open(path)

    def parked(self) -> tuple[Path, ...]:
        """Return nothing."""
        return ()


def test_a_pass_hangs_on_demand_and_for_ever(tmp_path: Path) -> None:
    """Until then the model is as its engine made it."""
    file = trigger(tmp_path, 7)
    engine = HangingEngine(Opener(), file.exists)
    model = engine.open(tmp_path)
    given: Any = ["input"]
    assert (model.path, engine.parked()) == (tmp_path, ())
    assert model.predict(given) == given
    file.touch()
    hangs = threading.Thread(target=model.predict, args=(given,), daemon=True)
    hangs.start()
    hangs.join(0.05)
    assert hangs.is_alive()


def test_the_hanging_detector_stands_in_for_the_real_one() -> None:
    """The application is otherwise the same, and the module as it was."""
    built: Any = build(AppArgs(device="cpu"))
    (detector,) = built._bound_deployment.init_args[1:]
    found = detector._bound_deployment.func_or_class
    assert found is not Detector
    assert issubclass(found, Detector)
    assert vars(app)["Detector"] is Detector


def test_each_fault_is_explained() -> None:
    """And named on the command line by what the report calls it."""
    for name, fault in FAULTS.items():
        found = replace(outcome(run(200, 200, 200)), name=name, what=fault.what)
        text = compose([found], describe(), 20.0)
        said = next(line for line in text.splitlines() if line.startswith(f"**{name}**: "))
        assert len(said) > 40
        App(repository=Path(), cache_dir=Path(), port=1, budget_bytes=1, **fault.app)


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
