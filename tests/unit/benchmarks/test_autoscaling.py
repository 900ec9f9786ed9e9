"""What the autoscaling benchmark deploys, counts and says."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.autoscaling import make_config, make_repository
from benchmarks.autoscaling_parts import (
    Misses,
    Outcome,
    Plan,
    agreed,
    ask,
    count_replicas,
    name_of,
)
from benchmarks.autoscaling_report import report
from benchmarks.machine import describe
from serve_app.registry.folder import FolderScanner
from serve_app.scaling.check import check_autoscaling


def test_the_config_is_one_that_an_operator_could_write(tmp_path: Path) -> None:
    """Detectors and ingress have delays of seconds, and pass the launcher's own check."""
    config = make_config(Plan(spare_s=3.0), tmp_path / "models", tmp_path / "cache", 8123)
    (application,) = config["applications"]
    by_name = {one["name"]: one for one in application["deployments"]}
    for deployment in by_name.values():
        check_autoscaling(deployment["autoscaling_config"])
    assert by_name["Ingress"]["autoscaling_config"]["max_replicas"] == 2
    assert by_name["Detector"]["user_config"]["spare_copies_after_s"] == 3.0
    assert config["http_options"]["port"] == 8123


def test_the_repository_holds_the_models_that_are_asked_for(tmp_path: Path) -> None:
    """By the names that the traffic uses."""
    root = make_repository(tmp_path / "models", 3)
    assert {spec.key.name for spec in FolderScanner(root).scan()} == {name_of(n) for n in range(3)}


def test_misses_are_counted_over_what_was_answered() -> None:
    """Failures apart; two counts add up."""
    both = Misses(90, 9, 1) + Misses(10, 1, 0)
    assert (both, both.per_100) == (Misses(100, 10, 1), 10.0)
    assert Misses(0, 0, 0).per_100 == 0.0


def test_a_request_that_nobody_answers_is_a_failure() -> None:
    """And no miss; the traffic goes on."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody listens", request=request)

    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(refuse)) as client:
        assert ask(client, name_of(7)) == (False, 0)


def test_the_report_has_a_row_for_each_step() -> None:
    """And says which of the misses were when."""
    outcome = Outcome(
        steps=[("traffic begins", 3.25)],
        before=Misses(200, 100, 0),
        after=Misses(100, 0, 0),
        shrinking=Misses(400, 2, 0),
        pinned=Misses(1, 0, 0),
        many=Misses(50, 0, 1),
        replicas=3,
        workers=2,
    )
    lines = report(Plan(spare_s=3.0, hot=3), outcome, describe(), 5_000_000).splitlines()
    assert "| traffic begins | 3.2 |" in lines
    assert "| one replica | 200 | 50.0 | 0 |" in lines
    assert "| 3 replicas on 2 nodes | 100 | 0.0 | 0 |" in lines
    assert "| 3 replicas become 1, 3 models | 400 | 0.5 | 0 |" in lines
    assert "| the pinned model, after that | 1 | 0.0 | 0 |" in lines
    assert "| 1 ingress becomes 2, then 1 | 50 | 0.0 | 1 |" in lines
    assert max(map(len, lines)) <= 100


def _count(answers: Iterator[int | list[str]]) -> tuple[int, list[float]]:
    """Count over answers of the ingress: a status, or 200 with replicas; return the waits, too."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/replicas"
        said = next(answers)
        if said == 0:
            raise httpx.ReadTimeout("silence", request=request)
        if isinstance(said, int):
            return httpx.Response(said, json={"code": "NOT_READY"})
        return httpx.Response(200, json={"replicas": said})

    waits: list[float] = []
    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as client:
        return agreed(lambda: count_replicas(client), waits.append), waits


@pytest.mark.parametrize("lull", [503, 504, 0, []])
def test_replicas_that_nobody_can_ask_are_not_gone(lull: int | list[str]) -> None:
    """Neither is one that takes a new configuration as the ingress is asked."""
    found, waits = _count(iter([["a", "b"], lull, ["a", "b"], ["a", "b"]]))
    assert found == 2
    assert waits == [0.5] * 3


def test_replicas_are_gone_once_two_answers_say_so() -> None:
    """Failures between do not count."""
    assert _count(iter([["a"], [], 503, [], []])) == (0, [0.5] * 4)


def test_an_ingress_that_never_tells_is_an_error() -> None:
    """Not a fleet of no replica."""
    with pytest.raises(TimeoutError, match="last None"):
        _count(itertools.repeat(503))
