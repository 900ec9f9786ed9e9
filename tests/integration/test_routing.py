"""The request router on three real Ray nodes, over HTTP; one start serves all the checks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.routing_cluster import LIMIT_S, MODELS, WARM, Outcome
from benchmarks.session import in_session
from tests.integration.routing_play import REQUESTS


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen on a fleet whose budgets hold all models together, and none of them alone."""
    work = tmp_path_factory.mktemp("routing")
    command = [sys.executable, "-m", "tests.integration.routing_play", "--work", str(work)]
    in_session([*command, "--out", str(work / "out.json")], work / "log", LIMIT_S)
    seen: dict[str, Any] = json.loads(Path(work / "out.json").read_text())
    return seen


def test_requests_find_their_models_in_memory(played: dict[str, Any]) -> None:
    """More than nine in ten after the warm phase, and hardly a model is there twice."""
    outcome = Outcome(**played["trace"])
    assert outcome.requests == outcome.answered == REQUESTS - WARM
    assert outcome.hit_ratio > 0.9
    assert outcome.copies <= MODELS * 1.25


def test_one_request_may_ask_several_models_at_once(played: dict[str, Any]) -> None:
    """Calls that share a request neither hang nor get each other's answers."""
    seen = played["gathered"]
    assert seen["answered"]
    assert all(answered == seen["asked"] for answered in seen["answered"])


def test_models_of_a_killed_replica_are_answered_elsewhere(played: dict[str, Any]) -> None:
    """At once, while Serve has not started another one yet."""
    seen = played["killed"]
    assert len(seen["models"]) >= 5
    assert set(seen["statuses"]) == {200}
